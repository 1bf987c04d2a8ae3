//! `trainyard job wait`: says what happens to a job until it has ended, and returns its exit code.

use clap::Args;

use super::NameArg;
use super::follow::{Follow, Options};
use crate::console::Console;
use crate::context::Context;
use crate::error::Error;

#[derive(Debug, Args)]
#[command(
    after_help = "The exit status is the job's own: 0 when it succeeded, else its exit code, or 1 when it has none (as \
                        when it was terminated). Ctrl-C leaves the job running and returns 130."
)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    name: NameArg,
    /// Accepted for compatibility; changes are shown when they happen
    #[arg(long, hide = true, value_name = "SECONDS")]
    interval: Option<u32>,
}

/// Does what the command says.
pub(super) async fn run(context: &Context, args: &WaitArgs) -> Result<u8, Error> {
    let name = args.name.resolve()?;
    Follow::new(
        context.api()?,
        name,
        Console::standard(),
        Options::of_states_alone(),
    )
    .run()
    .await
}
