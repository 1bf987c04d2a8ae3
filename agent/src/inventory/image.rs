//! The system of this host as an image reference, so that a cluster of a job file can demand one.
//!
//! Pure. Batch AI named images of a marketplace; on bare metal the agent says which of them its system is like:
//!
//! | /etc/os-release | publisher | offer | sku | version |
//! |---|---|---|---|---|
//! | Ubuntu, long-term | `Canonical` | `UbuntuServer` | `VERSION_ID-LTS` | point release, such as `22.04.4` |
//! | Ubuntu, other | `Canonical` | `UbuntuServer` | `VERSION_ID` | as above |
//! | Debian | `Debian` | `debian-VERSION_ID` | `VERSION_ID` | `VERSION_ID` |
//! | others | `ID` | `ID` | `VERSION_ID` | `VERSION_ID` |
//!
//! The setting `image` goes before it.

use std::collections::BTreeMap;

use trainyard_proto::v1::ImageReference;

/// Reads `PUBLISHER:OFFER:SKU[:VERSION]`.
///
/// # Errors
/// What is wrong, for people.
pub fn parse(text: &str) -> Result<ImageReference, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (head, version) = match parts[..] {
        [publisher, offer, sku] => ([publisher, offer, sku], ""),
        [publisher, offer, sku, version] if !version.is_empty() => {
            ([publisher, offer, sku], version)
        }
        _ => {
            return Err(format!(
                "`{text}` is not PUBLISHER:OFFER:SKU[:VERSION], such as Canonical:UbuntuServer:16.04-LTS"
            ));
        }
    };
    if head.iter().any(|part| part.trim().is_empty()) {
        return Err(format!("`{text}` has an empty part"));
    }
    let [publisher, offer, sku] = head.map(|part| part.trim().to_owned());
    Ok(ImageReference {
        publisher,
        offer,
        sku,
        version: version.to_owned(),
        ..ImageReference::default()
    })
}

/// The image that `/etc/os-release` describes; `None` where it says nothing.
#[must_use]
pub fn of_os_release(text: &str) -> Option<ImageReference> {
    let values: BTreeMap<&str, String> = text.lines().filter_map(assignment).collect();
    let get = |key: &str| values.get(key).cloned().unwrap_or_default();
    let (id, release) = (get("ID"), get("VERSION_ID"));
    if id.is_empty() {
        return None;
    }
    let [publisher, offer, sku, version] = match id.as_str() {
        "ubuntu" => {
            let words = get("VERSION");
            let long_term = words.contains("LTS") || get("PRETTY_NAME").contains("LTS");
            let sku = if long_term {
                format!("{release}-LTS")
            } else {
                release.clone()
            };
            let point = words
                .split_whitespace()
                .next()
                .filter(|word| word.starts_with(release.as_str()))
                .map_or(release, str::to_owned);
            [
                "Canonical".to_owned(),
                "UbuntuServer".to_owned(),
                sku,
                point,
            ]
        }
        "debian" => [
            "Debian".to_owned(),
            format!("debian-{release}"),
            release.clone(),
            release,
        ],
        _ => [id.clone(), id, release.clone(), release],
    };
    Some(ImageReference {
        publisher,
        offer,
        sku,
        version,
        ..ImageReference::default()
    })
}

/// `KEY=value`, with or without quotes.
fn assignment(line: &str) -> Option<(&str, String)> {
    let (key, value) = line.trim().split_once('=')?;
    let value = value.trim();
    let bare = ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote))
        .unwrap_or(value);
    Some((key, bare.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(image: &ImageReference) -> [&str; 4] {
        [&image.publisher, &image.offer, &image.sku, &image.version]
    }

    #[test]
    fn systems_are_named_as_batch_ai_named_them() {
        let cases = [
            (
                "NAME=\"Ubuntu\"\nVERSION=\"16.04.7 LTS (Xenial Xerus)\"\nID=ubuntu\nVERSION_ID=\"16.04\"\n",
                ["Canonical", "UbuntuServer", "16.04-LTS", "16.04.7"],
            ),
            (
                "ID=ubuntu\nVERSION=\"23.10 (Mantic)\"\nVERSION_ID='23.10'\n",
                ["Canonical", "UbuntuServer", "23.10", "23.10"],
            ),
            (
                "ID=debian\nVERSION_ID=\"12\"\nVERSION=\"12 (bookworm)\"\n",
                ["Debian", "debian-12", "12", "12"],
            ),
            (
                "# comment\nID=\"rocky\"\nVERSION_ID=\"9.3\"\n",
                ["rocky", "rocky", "9.3", "9.3"],
            ),
        ];
        for (text, wanted) in cases {
            assert_eq!(words(&of_os_release(text).unwrap()), wanted, "{text}");
        }
        assert_eq!(of_os_release("nothing\n"), None);
    }

    #[test]
    fn a_setting_has_three_or_four_parts() {
        assert_eq!(words(&parse("a:b:c").unwrap()), ["a", "b", "c", ""]);
        assert_eq!(words(&parse("a:b:c:1.2").unwrap()), ["a", "b", "c", "1.2"]);
        for text in ["", "a", "a:b", "a::c", "a:b:c:", "a:b:c:d:e"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
