//! The values of `--bind-storage`, `--bind-image` and `--tag`: parsing, printing, merging. Pure.

use trainyard_proto::v1::storage_binding::Target;
use trainyard_proto::v1::{
    FileServerDirectory, HostImage, ImageBinding, StorageBinding, image_binding,
};

/// How `--bind-storage` is written.
const STORAGE_FORM: &str =
    "write SHARE=hostPath:/DIR or SHARE=FILESERVER:/DIR (or ACCOUNT/SHARE=...)";

/// Parses `SHARE=hostPath:/DIR` or `SHARE=FILESERVER[:/DIR]`.
pub(crate) fn storage(text: &str) -> Result<StorageBinding, String> {
    let (share, target) = text.split_once('=').ok_or(STORAGE_FORM)?;
    if share.is_empty() || target.is_empty() {
        return Err(STORAGE_FORM.to_owned());
    }
    let (kind, directory) = target.split_once(':').unwrap_or((target, ""));
    let target = if kind.eq_ignore_ascii_case("hostPath") {
        if !directory.starts_with('/') {
            return Err(format!(
                "the directory of a hostPath is absolute: hostPath:/{directory}"
            ));
        }
        Target::HostPath(directory.to_owned())
    } else if kind.is_empty() {
        return Err(STORAGE_FORM.to_owned());
    } else {
        Target::FileServer(FileServerDirectory {
            file_server: kind.to_owned(),
            directory: directory.trim_matches('/').to_owned(),
        })
    };
    Ok(StorageBinding {
        share: share.to_owned(),
        target: Some(target),
    })
}

/// Parses `IMAGE=host`.
pub(crate) fn image(text: &str) -> Result<ImageBinding, String> {
    // An image name may hold `:` and `@` but no `=`.
    match text.split_once('=') {
        Some((image, "host")) if !image.is_empty() => Ok(ImageBinding {
            image: image.to_owned(),
            target: Some(image_binding::Target::Host(HostImage {})),
        }),
        Some((image, _)) if !image.is_empty() => Err(format!(
            "an image can be bound to `host` only for now: {image}=host"
        )),
        _ => Err("write IMAGE=host".to_owned()),
    }
}

/// Parses `KEY=VALUE`.
pub(crate) fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

/// A storage binding as `--bind-storage` takes it.
pub(crate) fn storage_text(binding: &StorageBinding) -> String {
    match &binding.target {
        Some(Target::HostPath(path)) => format!("{}=hostPath:{path}", binding.share),
        Some(Target::FileServer(at)) => {
            format!(
                "{}={}:/{}",
                binding.share,
                at.file_server,
                at.directory.trim_start_matches('/')
            )
        }
        None => format!("{}=?", binding.share),
    }
}

/// An image binding as `--bind-image` takes it.
pub(crate) fn image_text(binding: &ImageBinding) -> String {
    match &binding.target {
        Some(image_binding::Target::Host(HostImage {})) => format!("{}=host", binding.image),
        Some(image_binding::Target::OtherImage(other)) => format!("{}={other}", binding.image),
        None => format!("{}=?", binding.image),
    }
}

/// Puts each of `new` into `present` in place of the one with the same key, else at the end.
pub(crate) fn merge<T: Clone>(present: &mut Vec<T>, new: &[T], key: impl Fn(&T) -> &str) {
    for item in new {
        match present.iter_mut().find(|old| key(old) == key(item)) {
            Some(old) => *old = item.clone(),
            None => present.push(item.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_bindings_read_as_they_are_printed() {
        for text in [
            "logs=hostPath:/srv/logs",
            "account/logs=nfs1:/a/b",
            "data=nfs1:/",
        ] {
            assert_eq!(storage_text(&storage(text).unwrap()), text);
        }
        assert_eq!(storage_text(&storage("data=nfs1").unwrap()), "data=nfs1:/");
        assert_eq!(
            storage_text(&storage("data=hostpath:/x").unwrap()),
            "data=hostPath:/x"
        );
    }

    #[test]
    fn wrong_bindings_say_how_to_write_them() {
        for text in [
            "logs",
            "=x",
            "logs=",
            "logs=:/x",
            "logs=hostPath:relative",
            "logs=hostPath",
        ] {
            let error = storage(text).unwrap_err();
            assert!(error.contains("hostPath:/"), "{text}: {error}");
        }
        assert!(image("pytorch:1").unwrap_err().contains("IMAGE=host"));
        assert!(
            image("pytorch:1=other")
                .unwrap_err()
                .contains("pytorch:1=host")
        );
        assert!(tag("x").is_err());
    }

    #[test]
    fn images_may_hold_colons() {
        let text = "pytorch/pytorch:0.4_cuda9_cudnn7=host";
        assert_eq!(image_text(&image(text).unwrap()), text);
    }

    #[test]
    fn merging_replaces_by_key_and_keeps_the_order() {
        let mut present = vec![
            storage("a=hostPath:/1").unwrap(),
            storage("b=hostPath:/2").unwrap(),
        ];
        merge(
            &mut present,
            &[storage("a=nfs:/x").unwrap(), storage("c=nfs").unwrap()],
            |item| &item.share,
        );
        let texts: Vec<String> = present.iter().map(storage_text).collect();
        assert_eq!(texts, ["a=nfs:/x", "b=hostPath:/2", "c=nfs:/"]);
    }
}
