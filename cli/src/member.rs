//! `trainyard member`: list.

use clap::Subcommand;
use trainyard_proto::v1::{ListMembersRequest, Member, MemberRole};

use crate::context::Context;
use crate::error::Error;
use crate::table::Table;
use crate::text::{last_segment, short};

/// See the head of this file.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the schedulers and say which one leads
    List,
}

/// Does what the command says.
pub(crate) async fn run(context: &Context, command: Command) -> Result<u8, Error> {
    match command {
        Command::List => {
            let answer = context.api()?.list_members(ListMembersRequest {}).await?;
            context.output().list(&answer.members, table)?;
        }
    }
    Ok(0)
}

fn table(members: &[Member]) -> String {
    let mut table = Table::new(&["MEMBER", "ADDRESS", "ROLE", "HEALTHY", ">LAG"]);
    for member in members {
        let role = match member.role() {
            MemberRole::Unspecified => "unknown".to_owned(),
            role => short(role.as_str_name(), "MEMBER_ROLE_"),
        };
        table.row([
            last_segment(&member.name).to_owned(),
            member.address.clone(),
            role,
            if member.healthy {
                "yes".to_owned()
            } else {
                "no".to_owned()
            },
            member.lag_entries.to_string(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_is_seen_at_once() {
        let member = Member {
            name: "members/1".into(),
            id: 1,
            address: "127.0.0.1:7401".into(),
            role: MemberRole::Leader.into(),
            healthy: true,
            lag_entries: 0,
        };
        assert_eq!(
            table(&[member]),
            "MEMBER  ADDRESS         ROLE    HEALTHY  LAG\n1       127.0.0.1:7401  leader  yes        0\n"
        );
    }
}
