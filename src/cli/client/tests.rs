//! The client commands against a small admin server.

use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use super::*;
use crate::cli::client::certs::ShowArgs;
use crate::cli::client::connections::ConnectionsArgs;
use crate::cli::client::drain::DrainArgs;
use crate::cli::client::healthcheck::HealthcheckArgs;
use crate::cli::client::reload::ReloadArgs;
use crate::cli::client::status::StatusArgs;

/// A daemon that gives one canned answer and returns the request that it got.
struct Canned {
    address: Address,
    server: JoinHandle<String>,
    _folder: tempfile::TempDir,
}

fn canned(status: &str, body: &str) -> Canned {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("admin.sock");
    let listener = UnixListener::bind(&path).expect("bind");
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") {
            io::Read::read_exact(&mut stream, &mut byte).expect("request");
            request.push(byte[0]);
        }
        stream.write_all(answer.as_bytes()).expect("answer");
        String::from_utf8(request).expect("utf-8")
    });
    Canned { address: Address::Unix(path), server, _folder: folder }
}

impl Canned {
    fn args(&self) -> AdminArgs {
        AdminArgs { admin: self.address.clone(), timeout: None }
    }

    fn request(self) -> String {
        self.server.join().expect("server")
    }
}

/// Output, errors, exit code.
fn told(body: impl FnOnce(&mut dyn Write, &mut dyn Write) -> Result<Exit, ClientError>) -> (String, String, u8) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = body(&mut out, &mut err).expect("an answer");
    let text = |bytes| String::from_utf8(bytes).expect("utf-8");
    (text(out), text(err), code.code())
}

#[test]
fn addresses() {
    let tcp = |text: &str| Ok(Address::Tcp(text.parse().expect("address")));
    for (text, want) in [
        ("127.0.0.1:15000", tcp("127.0.0.1:15000")),
        ("[::1]:1", tcp("[::1]:1")),
        ("localhost:7", tcp("127.0.0.1:7")),
        (":7", tcp("127.0.0.1:7")),
        ("15000", tcp("127.0.0.1:15000")),
        ("unix:/run/adit.sock", Ok(Address::Unix("/run/adit.sock".into()))),
        ("unix:", Err("unix: needs a path".into())),
    ] {
        assert_eq!(text.parse::<Address>(), want, "{text}");
    }
    for text in ["", "example.com:80", "127.0.0.1", "1.2.3.4:99999", "http://127.0.0.1:1"] {
        assert!(text.parse::<Address>().is_err(), "{text}");
    }
}

#[test]
fn timeouts_have_units() {
    assert_eq!(parse_timeout("1500ms"), Ok(Duration::from_millis(1500)));
    for text in ["0s", "5", "x", "-1s", ""] {
        assert!(parse_timeout(text).is_err(), "{text}");
    }
}

#[test]
fn certs_for_people_and_as_json() {
    let body = r#"{"source":"files","generation":3,"publishedAt":"then","identity":"spiffe://td/ns/n/sa/web",
        "chain":[{"subject":"","issuer":"CN=a","serial":"5f","notBefore":"monday","notAfter":"tuesday"}],
        "root":"f1","roots":[{"subject":"CN=a","fingerprint":"f1","signedOwn":true,"livePeers":0,"notAfter":"2036"},
        {"subject":"CN=b","fingerprint":"f2","signedOwn":false,"livePeers":0}],
        "retiredRoots":[{"subject":"CN=old","fingerprint":"f0","livePeers":7,"trustedUntil":"noon"}],
        "otherRoots":[{"subject":"CN=lost","livePeers":1}],"blocked":null,"failuresInARow":2,
        "lastFailure":{"at":"now","reason":"key_mismatch","message":"no\u001b"},
        "faults":[{"reason":"crl_expired","message":"old list"}],"somethingNew":1}"#;
    let server = canned("200 OK", body);
    let show = ShowArgs { admin: server.args(), json: false };
    let (out, _, code) = told(|out, _| show.run_on(out));
    assert!(server.request().starts_with("GET /certs HTTP/1.1\r\n"));
    assert_eq!(code, 0);
    for line in [
        "identity     spiffe://td/ns/n/sa/web\n",
        "generation   3, published then\n",
        "serial       5f\n",
        "not before   monday\n",
        "root         CN=a\n",
        "last failure now: key_mismatch: no\\u{1b} (2 in a row)\n",
        "fault        crl_expired: old list\n",
    ] {
        assert!(out.contains(line), "{line} in {out}");
    }
    let words = |of: &str| -> Vec<String> {
        let line = out.lines().rfind(|line| line.starts_with(of)).expect(of);
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
    };
    assert_eq!(words("CN=a"), ["CN=a", "trusted", "0", "by the own certificate", "2036", "f1"]);
    assert_eq!(words("CN=b"), ["CN=b", "trusted", "0", "no", "f2"]);
    assert_eq!(words("CN=old"), ["CN=old", "retired, until noon", "7", "by peers", "f0"]);
    assert_eq!(words("CN=lost"), ["CN=lost", "not trusted", "1", "by peers"]);
    let server = canned("200 OK", body);
    let show = ShowArgs { admin: server.args(), json: true };
    assert_eq!(told(|out, _| show.run_on(out)).0, body);
    let server = canned("200 OK", r#"{"source":"none"}"#);
    let show = ShowArgs { admin: server.args(), json: false };
    assert_eq!(told(|out, _| show.run_on(out)).0, "identity     none\nsource       none\n");
}

#[test]
fn status_for_people_and_as_json() {
    let body = r#"{"version":"1.2.3","pid":7,"mode":"sidecar","uptimeMs":65000,"phase":"ready","ready":false,
        "blockers":[{"name":"mesh","since":"then","error":"no\u001b file"}],"workers":2,
        "connections":{"open":3,"limit":10,"listeners":[{"name":"socks5","address":"127.0.0.1:1080","open":3}]},
        "tunnels":{"toPeers":{"tunnels":2,"streams":5},"fromPeers":{"tunnels":1,"streams":0}},
        "mesh":{"source":["a.yaml"],"hash":"abc","counts":{"workloads":4},"rejected":{"at":"now","errors":["bad"]}},
        "refusedKeys":["workers"],"somethingNew":1}"#;
    let daemon = canned("200 OK", body);
    let args = StatusArgs { admin: daemon.args(), json: false };
    let (out, _, code) = told(|out, _| args.run_on(out));
    let want = "version      1.2.3\npid          7\nmode         sidecar\nup           1m 5s\nphase        ready\n\
                ready        no\n  blocked by mesh since then: no\\u{1b} file\nworkers      2\n\
                connections  3 of 10\n  socks5     3 on 127.0.0.1:1080\ntunnels      3\n  to peers   2, open streams 5\n\
                \x20 from peers 1, open streams 0\nconfig       none\n\
                mesh         a.yaml, 4 workloads, hash abc\n  rejected   now: bad\nrestart for  workers\n";
    assert_eq!((out.as_str(), code), (want, 0));
    assert!(daemon.request().starts_with("GET /status HTTP/1.1\r\n"));

    let daemon = canned("200 OK", body);
    let args = StatusArgs { admin: daemon.args(), json: true };
    assert_eq!(told(|out, _| args.run_on(out)), (body.to_owned(), String::new(), 0));
}

#[test]
fn connections_as_a_table() {
    let body = r#"{"connections":[{"id":12,"direction":"outbound","listener":"socks5","downstream":"127.0.0.1:5",
        "upstream":"[::1]:80","source":{"workload":"a","namespace":"ns"},"destination":{"workload":"b"},
        "bytesFromDownstream":1536,"bytesFromUpstream":0,"ageMs":61000,"idleMs":20,"state":"downstreamClosed"}]}"#;
    let daemon = canned("200 OK", body);
    let args = ConnectionsArgs { admin: daemon.args(), json: false };
    let (out, _, code) = told(|out, _| args.run_on(out));
    let want = "\
ID  DIRECTION  LISTENER  CLIENT       UPSTREAM  FROM  TO  FROM CLIENT  TO CLIENT    AGE  IDLE  STATE
12  outbound   socks5    127.0.0.1:5  [::1]:80  ns/a  b       1.5 KiB        0 B  1m 1s  20ms  downstreamClosed
";
    assert_eq!((out.as_str(), code), (want, 0));

    let daemon = canned("200 OK", r#"{"connections":[]}"#);
    let args = ConnectionsArgs { admin: daemon.args(), json: false };
    assert_eq!(told(|out, _| args.run_on(out)).0, "no connections\n");
}

#[test]
fn reload_tells_what_became_of_it() {
    let body = r#"{"config":{"result":"unchanged","hash":"c"},
        "mesh":{"result":"rejected","hash":"m","errors":["a.yaml:3: bad\n  hint: fix it"]},"refusedKeys":["workers"]}"#;
    let daemon = canned("422 Unprocessable Entity", body);
    let args = ReloadArgs { admin: daemon.args(), json: false };
    let (out, err, code) = told(|out, err| args.run_on(out, err));
    assert_eq!((out.as_str(), code), ("config  unchanged  c\nmesh    rejected   m\n", 1));
    assert_eq!(err, "mesh: a.yaml:3: bad\nmesh:   hint: fix it\nwarning: workers changes at a restart only\n");
    let request = daemon.request();
    assert!(request.starts_with("POST /reload HTTP/1.1\r\n") && request.contains("x-adit: 1\r\n"), "{request}");
}

#[test]
fn drain_needs_no_more_than_an_answer() {
    let daemon = canned("200 OK", r#"{"phase":"draining"}"#);
    let args = DrainArgs { admin: daemon.args() };
    assert_eq!(told(|out, _| args.run_on(out)), ("draining\n".into(), String::new(), 0));
    assert!(daemon.request().starts_with("POST /drain HTTP/1.1\r\n"));
}

#[test]
fn healthcheck_names_the_blockers() {
    let check = |daemon: &Canned, live| HealthcheckArgs {
        readiness: daemon.address.clone(),
        timeout: Duration::from_secs(5),
        live,
    };
    let daemon = canned("200 OK", "ready\n");
    let args = check(&daemon, false);
    assert_eq!(told(|out, err| args.run_on(out, err)), ("ready\n".into(), String::new(), 0));
    assert!(daemon.request().starts_with("GET /healthz/ready HTTP/1.1\r\n"));

    let daemon = canned("503 Service Unavailable", r#"[{"name":"mesh","since":"then","error":null}]"#);
    let args = check(&daemon, false);
    let want = (String::new(), "not ready: mesh since then: waiting\n".into(), 1);
    assert_eq!(told(|out, err| args.run_on(out, err)), want);

    let daemon = canned("503 Service Unavailable", r#"[{"name":"worker 1","since":"then","error":"x"}]"#);
    let args = check(&daemon, true);
    assert_eq!(told(|out, err| args.run_on(out, err)).1, "stuck: worker 1 since then: x\n");
    assert!(daemon.request().starts_with("GET /healthz/live HTTP/1.1\r\n"));
}

#[test]
fn errors_have_hints() {
    let folder = tempfile::tempdir().expect("folder");
    let nobody = AdminArgs { admin: Address::Unix(folder.path().join("none")), timeout: None };
    let error = nobody.ask(Method::GET, "/").err().expect("nobody is there");
    assert!(error.to_string().starts_with("cannot connect to unix:/") && error.hint().contains("is adit running?"));

    let daemon = canned("403 Forbidden", r#"{"error":"the Host\n must be loopback"}"#);
    let args = DrainArgs { admin: daemon.args() };
    let error = args.run_on(&mut Vec::new()).expect_err("refused");
    assert!(error.to_string().ends_with("answered 403 Forbidden: the Host\\n must be loopback"), "{error}");
    assert!(error.hint().contains("admin.allowRemote"));

    let daemon = canned("200 OK", "hello");
    let error = StatusArgs { admin: daemon.args(), json: false }.run_on(&mut Vec::new()).expect_err("no JSON");
    assert!(error.to_string().contains("is malformed"), "{error}");

    // A listener that never answers.
    let path = folder.path().join("silent");
    let _listener = UnixListener::bind(&path).expect("bind");
    let silent = AdminArgs { admin: Address::Unix(path), timeout: Some(Duration::from_millis(50)) };
    let error = silent.ask(Method::GET, "/").err().expect("silence");
    assert!(error.to_string().ends_with(" within 50ms"), "{error}");
}

#[test]
fn an_error_is_one_line_and_a_hint_and_a_gone_reader_is_none() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let daemon = canned("200 OK", r#"{"connections":[]}"#);
    let mut messages = Vec::new();
    let args = ConnectionsArgs { admin: daemon.args(), json: false };
    assert_eq!(args.run(&mut Output { data: &mut Gone, messages: &mut messages }), Exit::Ok);
    assert!(messages.is_empty());

    let folder = tempfile::tempdir().expect("folder");
    let admin = AdminArgs { admin: Address::Unix(folder.path().join("none")), timeout: None };
    let mut data = Vec::new();
    let exit = DrainArgs { admin }.run(&mut Output { data: &mut data, messages: &mut messages });
    let told = String::from_utf8(messages).expect("utf-8");
    assert_eq!((exit, data.len(), told.lines().count()), (Exit::Failed, 0, 2));
    assert!(
        told.starts_with("error: cannot connect to unix:") && told.contains("\n  hint: is adit running?"),
        "{told}"
    );
}
