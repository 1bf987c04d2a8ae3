//! Whether the schedulers' ports are free, asked before anything is started.

use std::net::TcpListener;
use std::path::Path;

use crate::error::Error;

/// Fails with the way out when one of the addresses is in use.
pub(super) fn check(addresses: &[(u32, String)], data: &Path) -> Result<(), Error> {
    for (id, address) in addresses {
        if let Err(error) = TcpListener::bind(address) {
            return Err(Error::failure(format!(
                "scheduler-{id} cannot listen at {address}: {error}. Stop what listens there (daemons of an earlier \
                 `trainyard dev` on this data have their pids in {}), or pass other data and ports: \
                 `--data DIR --port BASE`",
                data.join("pids").display()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let error = check(&[(1, address.clone())], Path::new("/data"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&address) && error.contains("--port"),
            "{error}"
        );
        drop(taken);
        check(&[(1, address)], Path::new("/data")).unwrap();
    }
}
