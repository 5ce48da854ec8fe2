//! HAProxy in front of adit and nginx behind it, which both have their own idea of the PROXY protocol.

use super::*;

/// A program in `host` with these settings, which takes connections at `port`.
fn start(host: &Host, port: u16, program: &[&str], folder: &Path, settings: &str) -> Running {
    let file = folder.join(program[0]);
    fs::write(&file, settings).expect("our own folder");
    let mut command = host.command(program[0]);
    Running::start(host, port, command.args(&program[1..]).arg(file))
}

fn nginx(host: &Host, folder: &Path, listen: &str, says: &str) -> Running {
    let pid = folder.join("pid");
    let settings = format!(
        "daemon off; user root; pid {}; error_log stderr; events {{}}\n\
         http {{ access_log off; server {{ listen 8080 {listen}; listen [::]:8080 {listen}; return 200 \"{says}\"; }} }}\n",
        pid.display()
    );
    start(host, 8080, &["nginx", "-e", "stderr", "-c"], folder, &settings)
}

fn curl(host: &Host, to: &str) -> String {
    shell(host, &format!("curl --silent --show-error --fail --max-time 20 'http://{to}/'")).ok()
}

#[test]
fn haproxy_says_who_the_client_is() {
    isolated(|| {
        need(&["curl", "haproxy", "nginx", "ss"]);
        let lab = Lab::new();
        adit(&lab.adit, &["redirect", "apply", "--force"]).ok();
        let balancer = format!("[{}, {}]", lab.client.v4, lab.client.v6);
        let mut daemon = lab.adit(&format!("inbound: {{ proxyProtocolFrom: {balancer} }}\n"), "");
        daemon.expect_log("proxy_header_invalid");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let application = nginx(&lab.adit, folder.path(), "", "$remote_addr");
        for version in ["send-proxy", "send-proxy-v2"] {
            let settings = format!(
                "defaults\n mode tcp\n timeout connect 10s\n timeout client 20s\n timeout server 20s\n\
                 listen v4\n bind {}:9000\n server adit {}:8080 {version}\n\
                 listen v6\n bind [{}]:9000\n server adit [{}]:8080 {version}\n",
                lab.client.v4, lab.adit.v4, lab.client.v6, lab.adit.v6
            );
            let haproxy = start(&lab.client, 9000, &["haproxy", "-db", "-f"], folder.path(), &settings);
            // The application sees whom HAProxy has seen.
            assert_eq!(curl(&lab.server, &format!("{}:9000", lab.client.v4)), lab.server.v4.to_string(), "{version}");
            assert_eq!(curl(&lab.server, &format!("[{}]:9000", lab.client.v6)), lab.server.v6.to_string(), "{version}");
            drop(haproxy);
        }
        let line = daemon.wait_log(&format!("src.addr={}:", lab.server.v4));
        assert!(line.contains(&format!(" peer.addr={}:", lab.client.v4)), "{line}");
        // Who may claim nothing is not asked, and who must say something is.
        assert_eq!(curl(&lab.server, &format!("{}:8080", lab.adit.v4)), lab.server.v4.to_string());
        let without = format!("curl --silent --max-time 20 'http://{}:8080/'", lab.adit.v4);
        assert_eq!(shell(&lab.client, &without).code, Some(56), "not reset");
        drop(application);
        carried(&daemon, "inbound");
        daemon.stop();
    });
}

#[test]
fn nginx_is_told_who_the_client_is() {
    isolated(|| {
        need(&["curl", "nginx", "ss"]);
        let lab = Lab::new();
        adit(&lab.adit, &["redirect", "apply", "--force"]).ok();
        let mesh = |version: &str| {
            format!(
                "workloads:\n- {{ uid: server, name: server, namespace: test, workloadIps: [{}], services: {{ test/web.test: {{}} }} }}\n\
                 services:\n- {{ name: web, namespace: test, hostname: web.test, vips: [/10.99.0.1], ports: {{ 80: 8080 }}, proxyProtocol: {version} }}\n",
                lab.server.v4
            )
        };
        let folder = tempfile::tempdir().expect("a temporary folder");
        let says = "$proxy_protocol_addr $proxy_protocol_server_addr $proxy_protocol_server_port";
        let application = nginx(&lab.server, folder.path(), "proxy_protocol", says);
        for version in ["v1", "v2"] {
            let daemon = lab.adit("", &mesh(version));
            assert_eq!(curl(&lab.adit, "10.99.0.1"), format!("{} 10.99.0.1 80", lab.adit.v4), "{version}");
            carried(&daemon, "outbound");
            daemon.stop();
        }
        drop(application);
    });
}
