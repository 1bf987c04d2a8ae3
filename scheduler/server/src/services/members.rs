//! `MemberService`: the schedulers as this one sees them.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use trainyard_proto::v1::member_service_server::MemberService;
use trainyard_proto::v1::{ListMembersRequest, ListMembersResponse, Member, MemberRole};
use trainyard_shared::names::MemberName;

use crate::context::Context;
use crate::status;

/// See the module.
#[derive(Debug, Clone)]
pub struct Members(pub Arc<Context>);

#[tonic::async_trait]
impl MemberService for Members {
    async fn list_members(
        &self,
        _request: Request<ListMembersRequest>,
    ) -> Result<Response<ListMembersResponse>, Status> {
        let log = self.0.log.status().borrow().clone();
        let leads = log.leader == Some(log.member_id);
        let member = |config: &crate::config::MemberConfig| {
            let progress = log.members.iter().find(|m| m.id == config.id);
            let own = config.id == log.member_id;
            let role = match log.leader {
                Some(leader) if leader == config.id => MemberRole::Leader,
                Some(_) => MemberRole::Follower,
                None => MemberRole::Unspecified,
            };
            let lag = progress
                .filter(|_| leads && !own)
                .map_or(0, |p| log.last_index.saturating_sub(p.matched));
            Ok(Member {
                name: MemberName::new(config.id)
                    .map_err(|e| status::internal(e.to_string()))?
                    .to_string(),
                id: config.id,
                address: config.address.clone(),
                role: role.into(),
                healthy: own || (leads && progress.is_some_and(|p| p.recent_active)),
                lag_entries: lag,
            })
        };
        let members = self.0.config.members.iter().map(member);
        Ok(Response::new(ListMembersResponse {
            members: members.collect::<Result<_, Status>>()?,
            cluster_id: self.0.cluster_id.clone(),
            term: log.term,
        }))
    }
}
