//! Real clients: curl and netcat.

use crate::kit::{Lab, isolated};
use crate::program::{names, need, run, shell};
use crate::serve::{echo, http};
use crate::wire::SETTINGS;

/// One service whose endpoint is the server's workload.
const MESH: &str = "\
workloads:
  - { uid: w1, name: web-1, namespace: shop, workloadIps: [10.77.0.3], protocol: TCP, services: { shop/web.shop.svc.cluster.local: { 80: 8080 } } }
services:
  - { name: web, namespace: shop, hostname: web.shop.svc.cluster.local, vips: [/10.99.0.1], ports: { 80: 8080 } }
";

#[test]
fn curl_by_address_service_and_name() {
    isolated(|| {
        need(&["curl"]);
        names("10.77.0.3 four.test\nfd77::3 six.test\n");
        let lab = Lab::new();
        http(&lab.server, 8080, "from the server\n");
        let adit = lab.adit(SETTINGS, MESH);
        for (proxy, url) in [
            ("socks5", "http://10.77.0.3:8080/"),
            ("socks5h", "http://10.77.0.3:8080/"),
            ("socks5", "http://[fd77::3]:8080/"),
            ("socks5h", "http://[fd77::3]:8080/"),
            // A virtual address, and names: of a service, and of the system's resolver (here or there).
            ("socks5", "http://10.99.0.1/"),
            ("socks5h", "http://web.shop.svc.cluster.local/"),
            ("socks5h", "http://four.test:8080/"),
            ("socks5h", "http://six.test:8080/"),
            ("socks5", "http://four.test:8080/"),
            ("socks5", "http://six.test:8080/"),
        ] {
            let proxy = format!("{proxy}://127.0.0.1:15080");
            let done = run(&lab.adit, "curl", &["--silent", "--show-error", "--proxy", &proxy, url]);
            assert_eq!(done.ok(), "from the server\n", "{proxy} {url}");
        }
        let line = adit.wait_log("dst.requested=\"web.shop.svc.cluster.local:80");
        assert!(line.contains("dst.service=\"web.shop.svc.cluster.local\""), "{line}");
        assert!(line.contains("dst.addr=10.77.0.3:8080"), "{line}");
        adit.stop();
    });
}

/// curl shows the codes in words; 97 is its exit code for what a SOCKS proxy refuses.
#[test]
fn curl_is_told_why() {
    isolated(|| {
        need(&["curl"]);
        names("");
        let lab = Lab::new();
        let mut adit = lab.adit(SETTINGS, "");
        for (url, code, reason) in [
            ("http://10.77.0.3:81/", "(5)", "connect_refused"),
            ("http://nowhere.test/", "(4)", "name_unresolved"),
            ("http://127.0.0.1:8080/", "(2)", "local_destination"),
        ] {
            let done =
                run(&lab.adit, "curl", &["--silent", "--show-error", "--proxy", "socks5h://127.0.0.1:15080", url]);
            assert_eq!(done.code, Some(97), "{url}: {}", done.err);
            assert!(done.err.contains(code), "{url}: {}", done.err);
            adit.expect_log(reason);
        }
        adit.stop();
    });
}

/// `-N` ends its side first, and still gets everything back.
#[test]
fn netcat_through_the_door() {
    isolated(|| {
        need(&["nc"]);
        let lab = Lab::new();
        echo(&lab.server, 7000);
        let adit = lab.adit(SETTINGS, "");
        for address in ["10.77.0.3", "fd77::3"] {
            let line = format!("printf hello | nc -N -X 5 -x 127.0.0.1:15080 {address} 7000");
            assert_eq!(shell(&lab.adit, &line).ok(), "hello", "{address}");
            let line = format!("head -c 3000000 /dev/zero | nc -N -X 5 -x 127.0.0.1:15080 {address} 7000 | wc -c");
            assert_eq!(shell(&lab.adit, &line).ok().trim(), "3000000", "{address}");
        }
        adit.stop();
    });
}
