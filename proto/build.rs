//! Compiles `trainyard/**/*.proto` with protox, so that no system `protoc` is needed.

use std::path::PathBuf;

const FILES: &[&str] = &[
    "trainyard/v1/common.proto",
    "trainyard/v1/resources.proto",
    "trainyard/v1/job.proto",
    "trainyard/v1/services.proto",
    "trainyard/v1/usage.proto",
    "trainyard/v1/watch.proto",
    "trainyard/v1/agent.proto",
    "trainyard/v1/peer.proto",
    "trainyard/store/v1/store.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_source_info(true).include_imports(true);
    compiler.open_files(FILES)?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let descriptors = compiler.file_descriptor_set();
    // Reflection and the job-file reader need the descriptors without comments.
    let mut bare = descriptors.clone();
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    std::fs::write(
        out.join("descriptors.bin"),
        prost::Message::encode_to_vec(&bare),
    )?;

    let mut config = tonic_prost_build::Config::new();
    config
        // Ordered maps everywhere: the same state must encode to the same bytes on every member.
        .btree_map(["."])
        .enable_type_names();
    tonic_prost_build::configure()
        .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .bytes(".trainyard.v1.RaftMessages")
        .bytes(".trainyard.v1.SnapshotChunk")
        .bytes(".trainyard.v1.FileChunk")
        .bytes(".trainyard.v1.StreamLogsResponse")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
