//! The authority of a group of schedulers: it issues every certificate of the group.

use std::fmt;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::files::{self, PRIVATE, PUBLIC};
use super::{Identity, Role, TlsError, role};

/// Years that certificates are valid. Nothing renews them yet, so they outlive the hardware.
const YEARS: i16 = 10;
const HINT: &str = "give the folder that `trainyard-scheduler init` wrote as authority/";

/// Issues certificates. Its key is the root of all trust in the group: it belongs on no host that serves.
pub struct Authority {
    cluster_id: String,
    certificate: String,
    key: KeyPair,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("cluster_id", &self.cluster_id)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a new authority for the group of schedulers of that id (a UUID by custom, see [`new_cluster_id`]).
    ///
    /// [`new_cluster_id`]: Self::new_cluster_id
    pub fn create(cluster_id: &str) -> Result<Self, TlsError> {
        role::check_cluster_id(cluster_id)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(&format!("Trainyard authority {cluster_id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI(
            role::authority_uri(cluster_id).as_str().try_into()?,
        )];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            cluster_id: cluster_id.to_owned(),
            certificate,
            key,
        })
    }

    /// A new random id for a group of schedulers.
    #[must_use]
    pub fn new_cluster_id() -> String {
        uuid::Uuid::new_v4().to_string()
    }

    /// Reads `ca.pem` and `ca.key` in `dir`.
    pub fn load(dir: &Path) -> Result<Self, TlsError> {
        let path = dir.join("ca.pem");
        let certificate = files::read(&path, HINT)?;
        let content = |what: String| TlsError::Content {
            path: path.clone(),
            what,
            hint: HINT,
        };
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|error| content(format!("not a certificate in PEM ({error})")))?;
        let cluster_id =
            role::authority_cluster_id(&der).map_err(|error| content(error.to_string()))?;

        let key_path = dir.join("ca.key");
        let key = files::read_key(&key_path, HINT)?;
        let key_error = |what: String| TlsError::Content {
            path: key_path.clone(),
            what,
            hint: HINT,
        };
        let key = KeyPair::from_pem(&key)
            .map_err(|error| key_error(format!("not a private key in PEM ({error})")))?;
        let certified = role::parse(&der)?;
        if certified.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(key_error("not the key of the ca.pem beside it".to_owned()));
        }
        Ok(Self {
            cluster_id,
            certificate,
            key,
        })
    }

    /// Writes `ca.pem` and `ca.key` (mode 0600) into `dir`, which is made if it is missing.
    pub fn save(&self, dir: &Path) -> Result<(), TlsError> {
        files::make_dir(dir)?;
        files::write(&dir.join("ca.key"), &self.key.serialize_pem(), PRIVATE)?;
        files::write(&dir.join("ca.pem"), &self.certificate, PUBLIC)
    }

    /// Id of the group of schedulers.
    #[must_use]
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// Makes a key and a certificate for that role.
    pub fn issue(&self, role: &Role) -> Result<Identity, TlsError> {
        role.check()?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(&format!("Trainyard {role}"));
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(
            role.uri(&self.cluster_id).as_str().try_into()?,
        )];
        if let Some(name) = role.dns_name() {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
            params
                .subject_alt_names
                .push(SanType::DnsName(name.try_into()?));
        }
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, &self.key)?;
        let certificate = params.signed_by(&key, &issuer)?;
        Identity::new(
            self.certificate.clone(),
            certificate.pem(),
            key.serialize_pem(),
        )
    }
}

/// What all certificates have in common: a subject and the time they are valid.
fn params(subject: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // X.509 ends common names at 64 characters; the whole name stands in the URI.
    let subject: String = subject.chars().take(64).collect();
    params.distinguished_name.push(DnType::CommonName, subject);
    // Clocks of hosts differ: a certificate must be valid where it is yesterday.
    let now = jiff::tz::TimeZone::UTC.to_datetime(jiff::Timestamp::now());
    let from = now.date().yesterday().unwrap_or(now.date());
    let (month, day) = (from.month().unsigned_abs(), from.day().unsigned_abs());
    params.not_before = date_time_ymd(i32::from(from.year()), month, day);
    // The 29th of February exists in no year ten years on.
    params.not_after = date_time_ymd(i32::from(from.year() + YEARS), month, day.min(28));
    params
}
