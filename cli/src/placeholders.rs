//! What Batch AI's command replaced in job files before it sent them: `<AZURE_BATCHAI_STORAGE_ACCOUNT>` in `accountName`
//! and `azureFileUrl`, `<AZURE_BATCHAI_STORAGE_KEY>` in `accountKey`.
//!
//! Here a share means what the workspace's bindings say, so that the account matters only to bindings `ACCOUNT/SHARE`:
//! without a value it becomes [`DEFAULT_ACCOUNT`]. Keys of storage accounts open nothing here: they are never sent,
//! neither a placeholder nor a real one. Pure.

use trainyard_proto::v1::{AzureStorageCredentialsInfo, JobSpec, MountVolumes};

/// Placeholder of the storage account.
pub(crate) const ACCOUNT: &str = "<AZURE_BATCHAI_STORAGE_ACCOUNT>";
/// The account of a placeholder that nobody gave a value.
pub(crate) const DEFAULT_ACCOUNT: &str = "storage";

/// Fills the placeholders of a job.
pub(crate) fn fill(spec: &mut JobSpec, account: Option<&str>) {
    let account = account
        .filter(|account| !account.is_empty())
        .unwrap_or(DEFAULT_ACCOUNT);
    if let Some(volumes) = &mut spec.mount_volumes {
        fill_volumes(volumes, account);
    }
}

fn fill_volumes(volumes: &mut MountVolumes, account: &str) {
    for share in &mut volumes.azure_file_shares {
        replace(&mut share.account_name, account);
        replace(&mut share.azure_file_url, account);
        drop_key(&mut share.credentials);
    }
    for container in &mut volumes.azure_blob_file_systems {
        replace(&mut container.account_name, account);
        drop_key(&mut container.credentials);
    }
}

fn replace(text: &mut String, account: &str) {
    if text.contains(ACCOUNT) {
        *text = text.replace(ACCOUNT, account);
    }
}

fn drop_key(credentials: &mut Option<AzureStorageCredentialsInfo>) {
    if let Some(credentials) = credentials {
        credentials.account_key.clear();
    }
}

#[cfg(test)]
mod tests {
    use trainyard_proto::v1::{AzureBlobFileSystemReference, AzureFileShareReference};

    use super::*;

    fn spec() -> JobSpec {
        JobSpec {
            mount_volumes: Some(MountVolumes {
                azure_file_shares: vec![AzureFileShareReference {
                    azure_file_url: format!("https://{ACCOUNT}.file.core.windows.net/logs"),
                    credentials: Some(AzureStorageCredentialsInfo {
                        account_key: "<AZURE_BATCHAI_STORAGE_KEY>".into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }],
                azure_blob_file_systems: vec![AzureBlobFileSystemReference {
                    account_name: ACCOUNT.into(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..JobSpec::default()
        }
    }

    fn filled(account: Option<&str>) -> (String, String, String) {
        let mut spec = spec();
        fill(&mut spec, account);
        let volumes = spec.mount_volumes.unwrap();
        let share = &volumes.azure_file_shares[0];
        let key = share.credentials.clone().unwrap().account_key;
        (
            share.azure_file_url.clone(),
            volumes.azure_blob_file_systems[0].account_name.clone(),
            key,
        )
    }

    #[test]
    fn the_account_goes_into_urls_and_names() {
        let (url, name, key) = filled(Some("mine"));
        assert_eq!(url, "https://mine.file.core.windows.net/logs");
        assert_eq!(name, "mine");
        assert_eq!(key, "");
    }

    #[test]
    fn without_an_account_the_names_are_still_valid() {
        let (url, name, _) = filled(None);
        assert_eq!(url, "https://storage.file.core.windows.net/logs");
        assert_eq!(name, DEFAULT_ACCOUNT);
    }
}
