//! Workspaces: create, update, delete.

use trainyard_proto::store::v1::{CreateWorkspace, Delete, UpdateWorkspace};
use trainyard_proto::v1::{ProvisioningState, Workspace};
use trainyard_shared::names::WorkspaceName;

use super::{Applied, Context, check_etag, incomplete, parse};
use crate::outcome::{Change, Refusal, Reply};
use crate::resolve;
use crate::state::State;

impl State {
    pub(super) fn create_workspace(
        &mut self,
        context: &mut Context,
        command: &CreateWorkspace,
    ) -> Applied {
        let wanted = command
            .workspace
            .as_ref()
            .ok_or_else(|| incomplete("workspace"))?;
        let name = parse::<WorkspaceName>(&wanted.name)?.to_string();
        let find = |s: &Self, n: &str| {
            s.workspaces
                .get(n)
                .map(|w| (w.uid.clone(), Reply::Workspace(w.clone())))
        };
        if let Some(reply) = self.replay(&command.request_id, &name, find) {
            return reply;
        }
        if self.workspaces.contains_key(&name) {
            return Err(Refusal::already_exists(&name));
        }
        let mut workspace = wanted.clone();
        self.check_bindings(&workspace)?;
        workspace.creation_time = Some(context.now);
        workspace.set_provisioning_state(ProvisioningState::Succeeded);
        workspace.etag = context.etag();
        self.requests
            .remember(&command.request_id, &name, &workspace.uid);
        self.workspaces.insert(name.clone(), workspace.clone());
        context.changed(Change::Workspace(name));
        Ok(Reply::Workspace(workspace))
    }

    pub(super) fn update_workspace(
        &mut self,
        context: &mut Context,
        command: &UpdateWorkspace,
    ) -> Applied {
        let wanted = command
            .workspace
            .as_ref()
            .ok_or_else(|| incomplete("workspace"))?;
        let name = &wanted.name;
        let current = self
            .workspaces
            .get(name)
            .ok_or_else(|| Refusal::not_found(name))?;
        check_etag(name, &wanted.etag, &current.etag)?;
        let mut updated = current.clone();
        let paths = command
            .update_mask
            .as_ref()
            .map(|m| m.paths.as_slice())
            .unwrap_or_default();
        if paths.is_empty() {
            return Err(Refusal::invalid_field(
                name,
                "updateMask",
                "names no field; say which to change",
            ));
        }
        for path in paths {
            match path.as_str() {
                "tags" => updated.tags = wanted.tags.clone(),
                "storage_bindings" | "storageBindings" => {
                    updated.storage_bindings = wanted.storage_bindings.clone();
                }
                "image_bindings" | "imageBindings" => {
                    updated.image_bindings = wanted.image_bindings.clone()
                }
                "allow_root" | "allowRoot" => updated.allow_root = wanted.allow_root,
                other => {
                    return Err(Refusal::invalid_field(
                        name,
                        "updateMask",
                        format!(
                            "{other} cannot be changed; tags, storage_bindings, image_bindings and allow_root can"
                        ),
                    ));
                }
            }
        }
        self.check_bindings(&updated)?;
        updated.etag = context.etag();
        self.workspaces.insert(name.clone(), updated.clone());
        context.changed(Change::Workspace(name.clone()));
        Ok(Reply::Workspace(updated))
    }

    pub(super) fn delete_workspace(&mut self, context: &mut Context, command: &Delete) -> Applied {
        let name = &command.name;
        let current = self
            .workspaces
            .get(name)
            .ok_or_else(|| Refusal::not_found(name))?;
        check_etag(name, &command.etag, &current.etag)?;
        let holds = [
            ("clusters", self.clusters(name, "", 1).len()),
            ("file servers", self.file_servers(name, "", 1).len()),
            ("experiments", self.experiments(name, "", 1).len()),
        ];
        if let Some((what, _)) = holds.iter().find(|(_, count)| *count > 0) {
            return Err(Refusal::precondition(
                name,
                format!("{name} still holds {what}; delete them first"),
            ));
        }
        self.workspaces.remove(name);
        context.changed(Change::Workspace(name.clone()));
        Ok(Reply::None)
    }

    /// Bindings to file servers must name such of the workspace; those to come are refused, so that a typo shows at
    /// once and not in the first job.
    fn check_bindings(&self, workspace: &Workspace) -> Result<(), Refusal> {
        for (i, binding) in workspace.storage_bindings.iter().enumerate() {
            resolve::binding_target(self, workspace, binding).map_err(|message| {
                Refusal::invalid_field(&workspace.name, &format!("storageBindings[{i}]"), message)
            })?;
        }
        Ok(())
    }
}
