//! `adit certs`: shows the identity of a running daemon; makes and examines certificates without one.
//!
//! Bare and as `show` it asks the daemon (`client::certs`).
//! `issue` is for tests and small meshes. It writes new files only, keys with mode 0600, and overwrites nothing.
//! `verify` checks what the daemon's files source would, by the same code.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::certs::ShowArgs;
use super::{Exit, Output};
use crate::identity::authority::{Authority, Issued};
use crate::identity::certificate::CertificateFacts;
use crate::identity::crl::RevocationSet;
use crate::identity::dev::write_new;
use crate::identity::files::certificates;
use crate::identity::status::{certificate_json, credentials_json};
use crate::identity::{Credentials, SpiffeId, TrustBundle, pem};

const EXAMPLE: &str = "Example:
  adit certs
  adit certs issue root --name mesh-a --out a
  adit certs issue leaf --ca a --id spiffe://cluster.local/ns/default/sa/web --out web
  adit certs verify --cert web.crt --key web.key --roots a.crt
  adit certs inspect web.crt --roots a.crt

A root rotation, a to b (each step once every adit has taken the one before):
  adit certs issue root --name mesh-b --out b
  adit certs issue bundle a.crt b.crt --out both.crt        # 1. everyone trusts both
  adit certs issue leaf --ca b --id ... --out web-b         # 2. leaves move to b
  adit certs issue bundle b.crt --out only-b.crt            # 3. nobody trusts a";

const SHOW_EXAMPLE: &str =
    "A root that neither the own certificate nor a live peer of any adit needs can go from the trust bundles.

Example:
  adit certs show
  adit certs show --json | jq '.roots[] | [.subject, .livePeers]'";

/// Show a running daemon's identity; make and examine certificates
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE, args_conflicts_with_subcommands = true)]
pub(super) struct CertsArgs {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    show: ShowArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show who a running daemon is, whom it trusts, and what each root is needed for [without a command: this]
    #[command(after_help = SHOW_EXAMPLE)]
    Show(ShowArgs),
    /// Make certificates, for tests and small meshes
    #[command(subcommand, after_help = EXAMPLE)]
    Issue(Issue),
    /// Show what certificates say: identity, serial, dates, chain, root
    #[command(after_help = "Example:\n  adit certs inspect web.crt --roots a.crt")]
    Inspect(Inspect),
    /// Check certificate, key and roots as the daemon would
    #[command(after_help = "Example:\n  adit certs verify --cert web.crt --key web.key --roots a.crt")]
    Verify(Verify),
}

#[derive(Debug, Subcommand)]
enum Issue {
    /// A root: writes OUT.crt and OUT.key
    #[command(after_help = "Example:\n  adit certs issue root --name mesh-a --out a")]
    Root {
        /// The common name in it, by which people tell roots apart
        #[arg(long, default_value = "adit root")]
        name: String,
        /// Where to write: PREFIX.crt and PREFIX.key, neither of which may be there
        #[arg(long, value_name = "PREFIX")]
        out: PathBuf,
        /// How long it is valid
        #[arg(long, default_value = "3650days", value_parser = life)]
        life: Duration,
    },
    /// A workload's certificate: writes OUT.crt and OUT.key
    #[command(
        after_help = "Example:\n  adit certs issue leaf --ca a --id spiffe://cluster.local/ns/default/sa/web --out web"
    )]
    Leaf {
        /// Where the root is: CA.crt and CA.key
        #[arg(long, value_name = "PREFIX")]
        ca: PathBuf,
        /// Such as spiffe://cluster.local/ns/default/sa/web
        #[arg(long)]
        id: SpiffeId,
        /// Where to write: PREFIX.crt and PREFIX.key, neither of which may be there
        #[arg(long, value_name = "PREFIX")]
        out: PathBuf,
        /// How long it is valid
        #[arg(long, default_value = "24h", value_parser = life)]
        life: Duration,
    },
    /// A trust bundle of several roots, each once
    #[command(after_help = "Example:\n  adit certs issue bundle a.crt b.crt --out both.crt")]
    Bundle {
        /// Roots, in PEM
        #[arg(required = true, value_name = "FILE")]
        roots: Vec<PathBuf>,
        /// Where to write; must not be there
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// A revocation list of certificates that this root has signed
    #[command(after_help = "Example:\n  adit certs issue revocations --ca a web.crt --out a.crl")]
    Revocations {
        /// Where the root is: CA.crt and CA.key
        #[arg(long, value_name = "PREFIX")]
        ca: PathBuf,
        /// The certificates to revoke: the first of each file
        #[arg(value_name = "FILE")]
        certificates: Vec<PathBuf>,
        /// Where to write; must not be there
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// When it should be replaced by a newer one
        #[arg(long, default_value = "7days", value_parser = life)]
        life: Duration,
    },
}

#[derive(Debug, Args)]
struct Inspect {
    /// Certificates, in PEM
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Say which of these roots has signed each
    #[arg(long, value_name = "FILE")]
    roots: Vec<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Verify {
    /// The leaf, then what stands between it and a root
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// The leaf's key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Whom to trust
    #[arg(long, required = true, value_name = "FILE")]
    roots: Vec<PathBuf>,
    /// Revocation lists
    #[arg(long, value_name = "FILE")]
    crls: Vec<PathBuf>,
    /// Whose it must be [default: whoever it says]
    #[arg(long)]
    id: Option<SpiffeId>,
}

/// Why it did not work, and what to do.
struct Failure(String, &'static str);

type Done = Result<String, Failure>;

impl CertsArgs {
    pub(super) fn run(self, output: &mut Output<'_>) -> Exit {
        let now = SystemTime::now();
        let done = match self.command {
            None => return self.show.run(output),
            Some(Command::Show(show)) => return show.run(output),
            Some(Command::Issue(issue)) => issue.run(now),
            Some(Command::Inspect(inspect)) => inspect.run(now),
            Some(Command::Verify(verify)) => verify.run(now),
        };
        match done {
            Ok(text) => output.data(text.trim_end()),
            Err(Failure(message, hint)) => {
                output.error(message, Some(hint));
                Exit::Failed
            }
        }
    }
}

impl Issue {
    fn run(self, now: SystemTime) -> Done {
        match self {
            Self::Root { name, out, life } => {
                let (root, key) = Authority::new_root(&name, now, life).map_err(failed)?;
                write_pair(&out, root.certificate_pem(), &key)
            }
            Self::Leaf { ca, id, out, life } => {
                let Issued { certificate_pem, key_pem, .. } = authority(&ca)?.issue(&id, now, life).map_err(failed)?;
                write_pair(&out, &certificate_pem, &key_pem)
            }
            Self::Bundle { roots, out } => {
                let mut text: Vec<String> = Vec::new();
                for file in &roots {
                    let bytes = read(file)?;
                    let found = certificates(file, &bytes).map_err(failed)?;
                    TrustBundle::new(&found, Arc::default()).map_err(failed)?;
                    let new = found.iter().map(|der| pem::encode("CERTIFICATE", der)).filter(|pem| !text.contains(pem));
                    let new: Vec<String> = new.collect();
                    text.extend(new);
                }
                write(&out, &text.concat())
            }
            Self::Revocations { ca, certificates, out, life } => {
                let serials = certificates.iter().map(|file| serial(file)).collect::<Result<Vec<_>, _>>()?;
                let list = authority(&ca)?.revoke(&serials, now, life).map_err(failed)?;
                write(&out, &list)
            }
        }
    }
}

impl Inspect {
    fn run(self, now: SystemTime) -> Done {
        let roots = if self.roots.is_empty() { None } else { Some(bundle(&self.roots, &[])?) };
        let mut documents = Vec::new();
        for file in &self.files {
            let found = certificates(file, &read(file)?).map_err(failed)?;
            for (index, der) in found.iter().enumerate() {
                let facts = CertificateFacts::of(der).map_err(failed)?;
                let mut document = certificate_json(&facts);
                let above = found.get(index + 1..).unwrap_or_default();
                let root = roots.as_ref().map(|roots| crate::identity::verify::root_of(roots, der, above, now));
                if let Some(document) = document.as_object_mut() {
                    document.insert("file".to_owned(), json!(file.display().to_string()));
                    document.insert("identity".to_owned(), json!(facts.spiffe_id().ok().map(|id| id.to_string())));
                    document.insert("authority".to_owned(), json!(facts.is_ca));
                    document.insert("valid".to_owned(), json!(facts.validity.holds(now)));
                    if let Some(root) = root {
                        let (root, problem) = match root {
                            Ok(root) => (Some(root.subject.to_string()), None),
                            Err(error) => (None, Some(error.to_string())),
                        };
                        document.insert("root".to_owned(), json!(root));
                        document.insert("problem".to_owned(), json!(problem));
                    }
                }
                documents.push(document);
            }
        }
        if self.json {
            return serde_json::to_string_pretty(&documents).map_err(failed);
        }
        Ok(documents.iter().map(block).collect::<Vec<_>>().join("\n"))
    }
}

/// One certificate for a person: the keys that have a value.
fn block(document: &serde_json::Value) -> String {
    const ORDER: [&str; 12] = [
        "file",
        "identity",
        "subject",
        "issuer",
        "serial",
        "notBefore",
        "notAfter",
        "valid",
        "authority",
        "root",
        "problem",
        "fingerprint",
    ];
    let line = |key: &&str| {
        let text = match document.get(key)? {
            serde_json::Value::Null => return None,
            serde_json::Value::String(text) if text.is_empty() => return None,
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        Some(format!("{key:<12} {}\n", text.escape_debug()))
    };
    ORDER.iter().filter_map(line).collect()
}

impl Verify {
    fn run(self, now: SystemTime) -> Done {
        let bundle = bundle(&self.roots, &self.crls)?;
        let chain = certificates(&self.cert, &read(&self.cert)?).map_err(failed)?;
        let key = pem::private_key(&self.key, &read(&self.key)?).map_err(failed)?;
        let expected = match (self.id, chain.first()) {
            (Some(id), _) => id,
            (None, Some(leaf)) => CertificateFacts::of(leaf).map_err(failed)?.spiffe_id().map_err(failed)?,
            (None, None) => return Err(failed("there is no certificate")),
        };
        let credentials = Credentials::new(chain, &key, Arc::new(bundle), &expected, now).map_err(failed)?;
        if credentials.revoked() {
            return Err(failed(format!("the certificate of {expected} is revoked")));
        }
        serde_json::to_string_pretty(&credentials_json(&credentials)).map_err(failed)
    }
}

fn bundle(roots: &[PathBuf], crls: &[PathBuf]) -> Result<TrustBundle, Failure> {
    let mut found = Vec::new();
    for file in roots {
        found.extend(certificates(file, &read(file)?).map_err(failed)?);
    }
    let lists = crls.iter().map(|file| Ok((file, read(file)?))).collect::<Result<Vec<_>, Failure>>()?;
    let lists = RevocationSet::read(lists.iter().map(|(file, bytes)| (file.as_path(), bytes.as_slice())));
    TrustBundle::new(&found, Arc::new(lists.map_err(failed)?)).map_err(failed)
}

fn authority(prefix: &Path) -> Result<Authority, Failure> {
    let text = |end| read(&ending(prefix, end)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Authority::from_pem(&text("crt")?, &text("key")?).map_err(failed)
}

fn serial(file: &Path) -> Result<Vec<u8>, Failure> {
    let found = certificates(file, &read(file)?).map_err(failed)?;
    let first = found.first().ok_or_else(|| failed("there is no certificate"))?;
    Ok(CertificateFacts::of(first).map_err(failed)?.serial_bytes())
}

fn write_pair(prefix: &Path, certificate: &str, key: &str) -> Done {
    let (certificate_file, key_file) = (ending(prefix, "crt"), ending(prefix, "key"));
    // The key first: a certificate without its key is of no use, and it is the one that must not be overwritten.
    write(&key_file, key)?;
    write(&certificate_file, certificate)?;
    Ok(format!("{}\n{}", certificate_file.display(), key_file.display()))
}

fn write(file: &Path, text: &str) -> Done {
    let written = write_new(file, text.as_bytes());
    written.map(|()| file.display().to_string()).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AlreadyExists => "nothing is overwritten: take another name, or remove it",
            _ => "can this user write there?",
        };
        Failure(format!("cannot write {}: {error}", file.display()), hint)
    })
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let content = crate::files::read(file, crate::files::Bounds::default());
    let content = content.map_err(|error| Failure(error.to_string(), "is the path right?"))?;
    Ok(content.bytes.map(|bytes| bytes.to_vec()).unwrap_or_default())
}

/// Added, not replaced: `a.b` becomes `a.b.crt`.
fn ending(prefix: &Path, end: &str) -> PathBuf {
    let mut name = prefix.as_os_str().to_owned();
    name.push(".");
    name.push(end);
    name.into()
}

fn failed(error: impl ToString) -> Failure {
    Failure(error.to_string(), "see adit certs --help; adit certs inspect shows what a file says")
}

fn life(text: &str) -> Result<Duration, String> {
    let life = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let longest = Duration::from_secs(100 * 366 * 24 * 3600);
    if life.is_zero() || life > longest { Err("expected up to 100 years, such as 24h".to_owned()) } else { Ok(life) }
}

#[cfg(test)]
mod tests;
