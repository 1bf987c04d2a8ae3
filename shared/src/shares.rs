//! What the storage and image names of job files mean: the bindings of a workspace.
//!
//! This module must never touch storage. An unbound name is the caller's to refuse.

use trainyard_proto::v1::{
    AzureBlobFileSystemReference, AzureFileShareReference, ImageBinding, StorageBinding, Workspace,
};

/// Account and share of `https://ACCOUNT.file.core.windows.net/SHARE`. None for anything else, an address with a
/// directory below the share among it: a binding stands for the share alone.
#[must_use]
pub fn share_of_url(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("https") && !scheme.eq_ignore_ascii_case("http") {
        return None;
    }
    let (host, share) = rest.split_once('/')?;
    let (account, domain) = host.split_once('.')?;
    let share = share.strip_suffix('/').unwrap_or(share);
    let plain = |text: &str| {
        !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || "/?#@".contains(c))
    };
    (plain(account) && plain(domain) && plain(share)).then_some((account, share))
}

/// Account and share of a mount: `accountName` where it is set, else the account in the address.
#[must_use]
pub fn of_file_share(mount: &AzureFileShareReference) -> Option<(&str, &str)> {
    let (account, share) = share_of_url(&mount.azure_file_url)?;
    if mount.account_name.is_empty() {
        Some((account, share))
    } else {
        Some((&mount.account_name, share))
    }
}

/// Account (which may be empty) and container of a mount.
#[must_use]
pub fn of_container(mount: &AzureBlobFileSystemReference) -> (&str, &str) {
    (&mount.account_name, &mount.container_name)
}

/// What a share or container means in that workspace. A binding of `ACCOUNT/SHARE` wins over one of `SHARE`.
#[must_use]
pub fn bind<'a>(
    workspace: &'a Workspace,
    account: &str,
    share: &str,
) -> Option<&'a StorageBinding> {
    let of_account = workspace.storage_bindings.iter().find(|binding| {
        !account.is_empty() && binding.share.split_once('/') == Some((account, share))
    });
    of_account.or_else(|| {
        workspace
            .storage_bindings
            .iter()
            .find(|binding| binding.share == share && !share.contains('/'))
    })
}

/// What an image name means in that workspace.
#[must_use]
pub fn bind_image<'a>(workspace: &'a Workspace, image: &str) -> Option<&'a ImageBinding> {
    workspace
        .image_bindings
        .iter()
        .find(|binding| binding.image == image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_shares() {
        for (url, expected) in [
            (
                "https://acc.file.core.windows.net/logs",
                Some(("acc", "logs")),
            ),
            (
                "HTTPS://acc.file.core.windows.net/logs/",
                Some(("acc", "logs")),
            ),
            (
                "https://<AZURE_BATCHAI_STORAGE_ACCOUNT>.file.core.windows.net/scripts",
                Some(("<AZURE_BATCHAI_STORAGE_ACCOUNT>", "scripts")),
            ),
            ("https://acc.file.core.windows.net/logs/sub", None),
            ("https://acc.file.core.windows.net/", None),
            ("https://acc.file.core.windows.net", None),
            ("https://acc/logs", None),
            ("https://.file/logs", None),
            ("ftp://acc.file.core.windows.net/logs", None),
            ("logs", None),
            ("", None),
        ] {
            assert_eq!(share_of_url(url), expected, "{url}");
        }
    }

    #[test]
    fn the_binding_of_the_account_wins() {
        let binding = |share: &str| StorageBinding {
            share: share.to_owned(),
            target: None,
        };
        let workspace = Workspace {
            storage_bindings: vec![binding("logs"), binding("acc/logs"), binding("acc/data")],
            ..Default::default()
        };
        let found = |account, share| bind(&workspace, account, share).map(|b| b.share.as_str());
        assert_eq!(found("acc", "logs"), Some("acc/logs"));
        assert_eq!(found("other", "logs"), Some("logs"));
        assert_eq!(found("", "logs"), Some("logs"));
        assert_eq!(found("acc", "data"), Some("acc/data"));
        assert_eq!(found("other", "data"), None);
        assert_eq!(found("", "acc/data"), None);
    }

    #[test]
    fn accounts_of_mounts() {
        let mut mount = AzureFileShareReference {
            azure_file_url: "https://acc.file.core.windows.net/logs".to_owned(),
            ..Default::default()
        };
        assert_eq!(of_file_share(&mount), Some(("acc", "logs")));
        mount.account_name = "mine".to_owned();
        assert_eq!(of_file_share(&mount), Some(("mine", "logs")));
    }
}
