//! OpenSSL to adit's tunnel door: which versions, ciphers, groups, protocols and certificates are taken, and with which alert the
//! others are refused.

use crate::envoy_config::HBONE;
use crate::kit::{Adit, isolated};
use crate::openssl::{Handshake, SClient};
use crate::pki::{Leaf, Root};
use crate::world::{FAR, Ground, KINDS, NO_RECORDS, adit, mesh, metric, settings, wait_metric};

struct Gate {
    ground: Ground,
    adit: Adit,
}

impl Gate {
    fn new(more: &str) -> Self {
        Self::with(Ground::new(), more)
    }

    fn with(ground: Ground, more: &str) -> Self {
        let (lab, kind) = (&ground.lab, KINDS[0]);
        let settings = settings(kind, FAR, &ground.far, &format!("{NO_RECORDS}\n{more}"));
        let adit = adit(&lab.adit, kind, &settings, &mesh(&lab.client, &lab.adit));
        Self { ground, adit }
    }

    fn try_with(&self, client: SClient) -> Handshake {
        client.run(&self.ground.lab.client, (self.ground.lab.adit.v4, HBONE).into())
    }

    fn good(&self) -> SClient {
        SClient::new().leaf(&self.ground.near)
    }

    /// The server that OpenSSL checks is always ours, whoever the client says it is.
    fn presenting(&self, leaf: &Leaf) -> SClient {
        SClient::new().leaf(&Leaf { roots: self.ground.root.cert(), ..leaf.clone() })
    }
}

#[test]
fn ciphers_groups_and_protocols_that_are_taken() {
    isolated(|| {
        let gate = Gate::new("");
        for cipher in ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"] {
            let met = gate.try_with(gate.good().with(&["-ciphersuites", cipher])).accepted();
            assert!(met.says(&format!("TLSv1.3, Cipher is {cipher}")), "{}", met.said);
        }
        for (group, key) in [("X25519", "X25519"), ("P-256", "ECDH, prime256v1"), ("P-384", "ECDH, secp384r1")] {
            let met = gate.try_with(gate.good().with(&["-groups", group])).accepted();
            assert!(met.says(&format!("Server Temp Key: {key}")), "{}", met.said);
        }
        let met = gate.try_with(gate.good()).accepted();
        assert!(met.says("ALPN protocol: h2") && !met.says("New Session Ticket"), "{}", met.said);
        let without = SClient::bare().with(&["-tls1_3"]).leaf(&gate.ground.near);
        assert!(gate.try_with(without).accepted().says("No ALPN negotiated"));
        gate.adit.stop();
    });
}

/// The numbers are those of RFC 8446, section 6.2. A hello of TLS 1.1 has no signature algorithms, which is reason enough too.
#[test]
fn handshakes_that_are_refused() {
    isolated(|| {
        let gate = Gate::new("");
        let Ground { pki, root, near, .. } = &gate.ground;
        let other: Root = pki.root("root-b");
        let elsewhere = pki.leaf_for(root, "elsewhere", "spiffe://elsewhere.test/ns/test/sa/near");
        let named = |name: &str, uris: &[&str]| gate.presenting(&pki.named(root, name, uris));
        let ours = "spiffe://cluster.local/ns/test/sa/near";
        let bare = SClient::bare;
        let cases: [(&str, SClient, &[u8], &str); 14] = [
            ("TLS 1.2", bare().with(&["-tls1_2", "-alpn", "h2"]).leaf(near), &[70], "incompatible"),
            ("TLS 1.1", bare().with(&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]).leaf(near), &[40, 70], "incompatible"),
            ("HTTP/1.1", bare().with(&["-tls1_3", "-alpn", "http/1.1"]).leaf(near), &[120], "alpn"),
            ("a group that nobody has", gate.good().with(&["-groups", "X448"]), &[40], "incompatible"),
            (
                "a cipher that nobody has",
                gate.good().with(&["-ciphersuites", "TLS_AES_128_CCM_SHA256"]),
                &[40],
                "incompatible",
            ),
            ("no certificate", SClient::new(), &[116], "no_certificate"),
            ("expired", gate.presenting(&pki.expired(root, "old")), &[45], "expired"),
            ("another root's", gate.presenting(&pki.leaf(&other, "near")), &[48], "unknown_issuer"),
            ("another trust domain's", gate.presenting(&elsewhere), &[42, 46, 49], "trust_domain"),
            ("no name", named("nameless", &[]), &[42, 46], "no_identity"),
            ("two names", named("two", &[ours, "spiffe://cluster.local/ns/test/sa/other"]), &[42, 46], "no_identity"),
            ("not SPIFFE", named("web", &["https://cluster.local/ns/test/sa/near"]), &[42, 46], "no_identity"),
            ("an empty segment", named("empty", &["spiffe://cluster.local/ns//sa/near"]), &[42, 46], "no_identity"),
            ("no trust domain", named("nowhere", &["spiffe:///ns/test/sa/near"]), &[42, 46], "no_identity"),
        ];
        let host = &gate.ground.lab.adit;
        for (count, (what, client, alerts, reason)) in (1_u8..).zip(cases) {
            let counter = format!("adit_tls_handshake_failures_total{{role=\"server\",reason=\"{reason}\"}}");
            let before = metric(host, &counter);
            let alert = gate.try_with(client).alert();
            assert!(alerts.contains(&alert), "{what}: alert {alert} instead of one of {alerts:?}");
            // By one, for this reason and no other.
            wait_metric(host, "adit_tls_handshake_failures_total{role=\"server\"}", f64::from(count));
            assert_eq!(metric(host, &counter), before + 1.0, "{what}: not counted as {reason}");
        }
        // It is none the worse for all that.
        gate.try_with(gate.good()).accepted();
    });
}

#[test]
fn an_alias_of_the_trust_domain_is_accepted() {
    isolated(|| {
        let ground = Ground::new();
        let aliased = ground.pki.leaf_for(&ground.root, "aliased", "spiffe://old.test/ns/test/sa/near");
        let other = ground.pki.leaf_for(&ground.root, "elsewhere", "spiffe://elsewhere.test/ns/test/sa/near");
        // A second `identity` would replace the first: the alias goes into that one.
        let (lab, kind) = (&ground.lab, KINDS[0]);
        let settings = settings(kind, FAR, &ground.far, NO_RECORDS)
            .replace("source: files,", "source: files, trustDomainAliases: [old.test],");
        let adit = adit(&lab.adit, kind, &settings, &mesh(&lab.client, &lab.adit));
        let gate = Gate { ground, adit };
        gate.try_with(gate.presenting(&aliased)).accepted();
        gate.try_with(gate.good()).accepted();
        gate.try_with(gate.presenting(&other)).alert();
    });
}

/// Two roots are trusted, and what either has revoked is refused.
#[test]
fn two_roots_and_revocation_lists() {
    isolated(|| {
        let mut ground = Ground::new();
        let other = ground.pki.root("root-b");
        let newer = ground.pki.leaf(&other, "near");
        let revoked = [ground.pki.leaf(&ground.root, "revoked"), ground.pki.leaf(&other, "revoked")];
        let lists = [
            ground.pki.revocations("a", &ground.root, &[&revoked[0]]),
            ground.pki.revocations("b", &other, &[&revoked[1]]),
        ];
        ground.far.roots = ground.pki.bundle("both", &[&ground.root, &other]);
        let (lab, kind) = (&ground.lab, KINDS[0]);
        let crls = format!("crls: ['{}', '{}'], roots:", lists[0].display(), lists[1].display());
        let settings = settings(kind, FAR, &ground.far, NO_RECORDS).replace("roots:", &crls);
        let adit = adit(&lab.adit, kind, &settings, &mesh(&lab.client, &lab.adit));
        let gate = Gate { ground, adit };
        gate.try_with(gate.good()).accepted();
        gate.try_with(gate.presenting(&newer)).accepted();
        for leaf in &revoked {
            assert_eq!(gate.try_with(gate.presenting(leaf)).alert(), 44, "certificate_revoked");
        }
        let revoked = "adit_tls_handshake_failures_total{role=\"server\",reason=\"revoked\"}";
        wait_metric(&gate.ground.lab.adit, revoked, 2.0);
    });
}
