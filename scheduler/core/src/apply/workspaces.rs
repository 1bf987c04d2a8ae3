//! Workspaces: create, update, delete.

use trainyard_proto::store::v1::{CreateWorkspace, Delete, UpdateWorkspace};
use trainyard_proto::v1::{ProvisioningState, RetentionPolicy, Workspace};
use trainyard_shared::names::WorkspaceName;

use super::{Applied, Context, Prepared, alive, check_etag, incomplete, parse};
use crate::outcome::{Change, Refusal, Reply};
use crate::resolve;
use crate::state::State;

impl State {
    /// The checking half of [`State::create_workspace`]; changes nothing.
    pub(super) fn prepare_workspace(
        &self,
        context: &Context,
        command: &CreateWorkspace,
    ) -> Result<Prepared<Workspace>, Refusal> {
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
            return reply.map(|made| Prepared::Made(Box::new(made)));
        }
        if let Some(existing) = self.workspaces.get(&name) {
            alive(&name, existing.provisioning_state())?;
            return Err(Refusal::already_exists(&name));
        }
        let mut workspace = wanted.clone();
        self.check_bindings(&workspace)?;
        check_retention(&name, workspace.retention.as_ref())?;
        workspace.creation_time = Some(context.now);
        workspace.set_provisioning_state(ProvisioningState::Succeeded);
        workspace.etag = context.etag();
        Ok(Prepared::New(Box::new(workspace)))
    }

    pub(super) fn create_workspace(
        &mut self,
        context: &mut Context,
        command: &CreateWorkspace,
    ) -> Applied {
        let workspace = match self.prepare_workspace(context, command)? {
            Prepared::Made(reply) => return Ok(*reply),
            Prepared::New(workspace) => *workspace,
        };
        let name = workspace.name.clone();
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
        alive(name, current.provisioning_state())?;
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
                "retention" => updated.retention = wanted.retention,
                other => {
                    return Err(Refusal::invalid_field(
                        name,
                        "updateMask",
                        format!(
                            "{other} cannot be changed; tags, storage_bindings, image_bindings, allow_root and retention can"
                        ),
                    ));
                }
            }
        }
        self.check_bindings(&updated)?;
        check_retention(name, updated.retention.as_ref())?;
        updated.etag = context.etag();
        self.workspaces.insert(name.clone(), updated.clone());
        context.changed(Change::Workspace(name.clone()));
        Ok(Reply::Workspace(updated))
    }

    /// An empty workspace vanishes at once; another is `deleting` until sweeps have emptied it.
    pub(super) fn delete_workspace(&mut self, context: &mut Context, command: &Delete) -> Applied {
        let name = &command.name;
        let current = self
            .workspaces
            .get(name)
            .ok_or_else(|| Refusal::not_found(name))?;
        if current.provisioning_state() == ProvisioningState::Deleting {
            return Ok(Reply::None);
        }
        check_etag(name, &command.etag, &current.etag)?;
        self.begin_deleting_workspace(context, name);
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

fn check_retention(name: &str, retention: Option<&RetentionPolicy>) -> Result<(), Refusal> {
    let age = retention.and_then(|r| r.max_age.as_ref());
    if age.is_some_and(|age| age.seconds < 0 || !(0..1_000_000_000).contains(&age.nanos)) {
        return Err(Refusal::invalid_field(
            name,
            "retention.maxAge",
            "must not be negative; write P30D, or leave it out to keep jobs of any age",
        ));
    }
    Ok(())
}
