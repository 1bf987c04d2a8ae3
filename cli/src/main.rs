//! The program `trainyard`: hands its arguments to the library and its exit status to the caller, and nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    trainyard_cli::main()
}
