//! The scheduler daemon: parses the command line and hands over to the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    trainyard_scheduler::cli::main()
}
