//! File servers: create, delete.

use trainyard_proto::store::v1::{CreateFileServer, Delete};
use trainyard_proto::v1::{FileServer, ProvisioningState, file_server, storage_binding};
use trainyard_shared::names::{FileServerName, WorkspaceName};

use super::{Applied, Context, Prepared, check_etag, incomplete, parse};
use crate::exports;
use crate::outcome::{Change, Refusal, Reply};
use crate::resolve;
use crate::state::State;

impl State {
    /// The checking half of [`State::create_file_server`]; changes nothing.
    pub(super) fn prepare_file_server(
        &self,
        context: &Context,
        command: &CreateFileServer,
    ) -> Result<Prepared<FileServer>, Refusal> {
        let wanted = command
            .file_server
            .as_ref()
            .ok_or_else(|| incomplete("file server"))?;
        let parsed = parse::<FileServerName>(&wanted.name)?;
        let name = parsed.to_string();
        let find = |s: &Self, n: &str| {
            s.file_servers
                .get(n)
                .map(|f| (f.uid.clone(), Reply::FileServer(Box::new(f.clone()))))
        };
        if let Some(reply) = self.replay(&command.request_id, &name, find) {
            return reply.map(|made| Prepared::Made(Box::new(made)));
        }
        self.parent_workspace(&parsed.workspace())?;
        if self.file_servers.contains_key(&name) {
            return Err(Refusal::already_exists(&name));
        }
        let mut file_server = wanted.clone();
        file_server.creation_time = Some(context.now);
        file_server.provisioning_state_transition_time = Some(context.now);
        match file_server.kind.as_mut() {
            Some(file_server::Kind::Managed(managed)) => {
                managed.node = self.choose_exporter(&name, managed)?;
                file_server.set_provisioning_state(ProvisioningState::Updating);
            }
            Some(file_server::Kind::External(external)) => {
                file_server.mount_settings = Some(exports::external_settings(external));
                file_server.set_provisioning_state(ProvisioningState::Succeeded);
            }
            None => {
                return Err(Refusal::invalid_field(
                    &name,
                    "external",
                    "say which kind it is: external (address and export) or managed",
                ));
            }
        }
        file_server.etag = context.etag();
        Ok(Prepared::New(Box::new(file_server)))
    }

    pub(super) fn create_file_server(
        &mut self,
        context: &mut Context,
        command: &CreateFileServer,
    ) -> Applied {
        let file_server = match self.prepare_file_server(context, command)? {
            Prepared::Made(reply) => return Ok(*reply),
            Prepared::New(file_server) => *file_server,
        };
        let name = file_server.name.clone();
        self.requests
            .remember(&command.request_id, &name, &file_server.uid);
        self.file_servers.insert(name.clone(), file_server.clone());
        self.index_export(&name, true);
        if let Some(managed) = exports::managed(&file_server) {
            context.changed(Change::Desired(managed.node.clone()));
        }
        context.changed(Change::FileServer(name));
        Ok(Reply::FileServer(Box::new(file_server)))
    }

    pub(super) fn delete_file_server(
        &mut self,
        context: &mut Context,
        command: &Delete,
    ) -> Applied {
        let name = &command.name;
        let current = self
            .file_servers
            .get(name)
            .ok_or_else(|| Refusal::not_found(name))?;
        check_etag(name, &command.etag, &current.etag)?;
        let node = exports::managed(current).map(|managed| managed.node.clone());
        let parsed = parse::<FileServerName>(name)?;
        if !command.force
            && let Some(user) = self.user_of_file_server(&parsed.workspace(), name)
        {
            return Err(Refusal::precondition(
                name,
                format!(
                    "{name} is in use by {user}; release it there first, or force it: what mounts it from then on fails"
                ),
            ));
        }
        self.index_export(name, false);
        self.file_servers.remove(name);
        if let Some(node) = node {
            context.changed(Change::Desired(node));
        }
        context.changed(Change::FileServer(name.clone()));
        Ok(Reply::None)
    }

    /// A binding, cluster or unfinished job of the workspace that names the file server.
    fn user_of_file_server(&self, workspace_name: &WorkspaceName, name: &str) -> Option<String> {
        let is_it = |id: &str| {
            resolve::file_server_name(workspace_name, id)
                .is_ok_and(|found| found.to_string() == name)
        };
        let mounts_it = |mounts: Option<&trainyard_proto::v1::MountVolumes>| {
            mounts.is_some_and(|m| {
                m.file_servers
                    .iter()
                    .any(|f| f.file_server.as_ref().is_some_and(|r| is_it(&r.id)))
            })
        };
        let workspace = self.workspaces.get(&workspace_name.to_string())?;
        for binding in &workspace.storage_bindings {
            if let Some(storage_binding::Target::FileServer(directory)) = binding.target.as_ref()
                && is_it(&directory.file_server)
            {
                return Some(format!(
                    "the binding of {} in {}",
                    binding.share, workspace.name
                ));
            }
        }
        for cluster in self.clusters(&workspace.name, "", usize::MAX) {
            if mounts_it(
                cluster
                    .node_setup
                    .as_ref()
                    .and_then(|s| s.mount_volumes.as_ref()),
            ) {
                return Some(cluster.name);
            }
        }
        let prefix = format!("{}/", workspace.name);
        self.indexes
            .unfinished
            .values()
            .flatten()
            .filter(|job| job.starts_with(&prefix))
            .filter_map(|job| self.jobs.open(job))
            .find(|job| mounts_it(job.spec.as_ref().and_then(|s| s.mount_volumes.as_ref())))
            .map(|job| job.name.clone())
    }
}
