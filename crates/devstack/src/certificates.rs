//! A certificate authority and a certificate for 127.0.0.1, new for each test.
//!
//! These are two certificates, since rustls refuses a server that presents the authority's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::programs::{Account, give};
use crate::tempdir::TempDir;

/// An authority, and a certificate that it issued for 127.0.0.1 and localhost, as PEM files. Dropping removes the files.
#[derive(Debug)]
pub struct Certificates {
    dir: TempDir,
}

/// A server's certificate and key, as files that the server may read.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certificates {
    /// Makes new keys and certificates.
    pub fn new() -> Certificates {
        let mut authority = CertificateParams::new(Vec::new()).expect("an authority without names is valid");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "devstack test authority");
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority_key = KeyPair::generate().expect("a key can be made");
        let root = authority.self_signed(&authority_key).expect("the authority signs itself");

        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let mut server = CertificateParams::new(names).expect("both names are valid");
        server.distinguished_name.push(DnType::CommonName, "localhost");
        let key = KeyPair::generate().expect("a key can be made");
        let issuer = Issuer::new(authority, authority_key);
        let leaf = server.signed_by(&key, &issuer).expect("the authority signs");

        let certificates = Certificates { dir: TempDir::new(None) };
        write(&certificates.ca(), &root.pem(), 0o644);
        write(&certificates.certificate(), &leaf.pem(), 0o644);
        write(&certificates.key(), &key.serialize_pem(), 0o600);
        certificates
    }

    /// The authority's certificate, which a client must trust.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The server's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("certificate.pem")
    }

    /// The server's key, which only this user may read.
    pub fn key(&self) -> PathBuf {
        self.dir.path().join("key.pem")
    }

    /// Copies the server's certificate and key to a folder of `owner`: Postgres refuses a key that belongs to another user.
    pub(crate) fn copy_leaf(&self, folder: &Path, owner: Option<&Account>) -> Leaf {
        let leaf = Leaf { certificate: folder.join("certificate.pem"), key: folder.join("key.pem") };
        for (from, to) in [(self.certificate(), &leaf.certificate), (self.key(), &leaf.key)] {
            // The copy has the original's mode.
            fs::copy(&from, to).expect("the certificate can be copied");
            give(to, owner).expect("root may give a file away");
        }
        leaf
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Certificates::new()
    }
}

fn write(path: &Path, text: &str, mode: u32) {
    // Only this user may enter the folder (mode 700), so no other user reads the key before its mode is set.
    fs::write(path, text).expect("a file can be written in our own folder");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("the file is ours");
}
