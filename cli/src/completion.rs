//! `trainyard completion`: a completion script for a shell.

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::{Shell as Generator, generate};

use crate::args::Arguments;
use crate::error::Error;
use crate::output;

/// See the head of this file.
#[derive(Debug, Args)]
#[command(after_help = "For bash: source <(trainyard completion bash)")]
pub(crate) struct Command {
    /// Shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Prints the script.
pub(crate) fn run(command: &Command) -> Result<u8, Error> {
    output::write(&script(command.shell))?;
    Ok(0)
}

fn script(shell: Shell) -> String {
    let generator = match shell {
        Shell::Bash => Generator::Bash,
        Shell::Zsh => Generator::Zsh,
        Shell::Fish => Generator::Fish,
    };
    // Into memory first: the generator panics when its writer fails.
    let mut text = Vec::new();
    generate(generator, &mut Arguments::command(), "trainyard", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_know_the_nouns() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            assert!(script(shell).contains("file-server"), "{shell:?}");
        }
    }
}
