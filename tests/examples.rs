//! The examples as files: each says what the image, the settings and the mesh say, and adit itself has nothing against it.
//!
//! `.ci/compose` runs the compose example, where an engine runs. There is no cluster to run the Kubernetes one: here are its
//! settings, its mesh and its rules tried with the binary, and its fields compared with the Dockerfile; `.ci/run` holds the
//! manifests against Kubernetes' own schemas.

#![allow(clippy::panic, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_yaml::Value;

const DOCKERFILE: &str = include_str!("../Dockerfile");
const IGNORED: &str = include_str!("../.dockerignore");
const BINARY: &str = "/usr/local/bin/adit";

/// Runs adit with `variables`; what it printed, or a panic with what it said.
fn adit(args: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    command.args(args).env_clear().envs(variables.iter().copied());
    let output = command.output().expect("the binary runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    assert!(output.stderr.is_empty(), "{args:?} warns: {}", text(&output.stderr));
    text(&output.stdout)
}

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of a YAML file, merge keys applied.
fn documents(name: &str) -> Vec<Value> {
    use serde::Deserialize as _;
    let text = file(name);
    let parsed = serde_yaml::Deserializer::from_str(&text).map(|document| {
        let mut value = Value::deserialize(document).unwrap_or_else(|error| panic!("{name}: {error}"));
        value.apply_merge().unwrap_or_else(|error| panic!("{name}: {error}"));
        value
    });
    parsed.collect()
}

/// By keys and, in lists, names: `spec.containers.app.image`. Null if it is not there.
fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    const NULL: &Value = &Value::Null;
    path.split('.').fold(value, |value, key| match value {
        Value::Sequence(items) => items.iter().find(|item| item["name"] == key).unwrap_or(NULL),
        other => other.get(key).unwrap_or(NULL),
    })
}

fn strings(value: &Value) -> Vec<String> {
    let items = value.as_sequence().unwrap_or_else(|| panic!("a list: {value:?}"));
    items
        .iter()
        .map(|item| match item {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            other => panic!("a text: {other:?}"),
        })
        .collect()
}

/// The rest of the Dockerfile's last line that begins so.
fn instruction(name: &str) -> &'static str {
    let found = DOCKERFILE.lines().rev().find_map(|line| line.strip_prefix(name));
    found.unwrap_or_else(|| panic!("no {name} in the Dockerfile")).trim()
}

/// The user and group that the image runs as.
fn image_user() -> (u64, u64) {
    let (user, group) = instruction("USER").split_once(':').expect("user and group");
    (user.parse().expect("a number"), group.parse().expect("a number"))
}

/// The rules of `redirect apply` with these arguments, which must leave the image's user alone.
fn rules_leave_adit_alone(arguments: &[String]) {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ["redirect", "apply", rules @ .., "--wait", wait] = arguments.as_slice() else {
        panic!("not an apply that waits: {arguments:?}")
    };
    assert!(wait.ends_with('s'), "{wait}");
    let printed = adit(&[&["redirect", "print"], rules].concat(), &[]);
    assert!(printed.contains(&format!("meta skuid {} return", image_user().0)), "{printed}");
    // No marks: adit may not set any.
    assert!(!printed.contains("meta mark"), "{printed}");
}

#[test]
fn the_dockerfile_speaks_of_this_version_and_of_what_it_is_given() {
    assert_eq!(instruction("ARG VERSION="), env!("CARGO_PKG_VERSION"));
    assert!(instruction("ENTRYPOINT").contains(BINARY));
    assert!(instruction("HEALTHCHECK").contains(BINARY));
    // Everything that is copied from outside is let in, and whatever is let in is copied.
    let copied: Vec<&str> = DOCKERFILE
        .lines()
        .filter(|line| line.starts_with("COPY ") && !line.contains("--from"))
        .flat_map(|line| {
            let words: Vec<&str> = line.split(' ').skip(1).collect();
            words.split_last().map(|(_to, from)| from.to_vec()).unwrap_or_default()
        })
        .collect();
    let let_in: Vec<&str> = IGNORED.lines().filter_map(|line| line.strip_prefix('!')).collect();
    for path in &copied {
        assert!(let_in.iter().any(|root| Path::new(path).starts_with(root)), "{path} is not in the context");
    }
    for root in &let_in {
        assert!(copied.iter().any(|path| Path::new(path).starts_with(root)), "{root} is sent for nothing");
    }
    // What the sources include from outside src is there when they are compiled; what only tests include is in docs.
    let included = included_by(&root().join("src"));
    assert!(included.len() >= 3, "{included:?}");
    for path in included.iter().filter(|path| !path.starts_with("docs")) {
        assert!(copied.iter().any(|from| path.starts_with(from)), "{} is not copied", path.display());
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What files below `folder` include from outside `src`, from the root of the tree.
fn included_by(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(included_by(&path));
            continue;
        }
        let text = fs::read_to_string(&path).expect("a source file");
        for rest in text.split("include_str!(\"").skip(1) {
            let name = rest.split('"').next().expect("a name");
            let file = path.parent().expect("a folder").join(name).canonicalize().expect("a file that is there");
            let file = file.strip_prefix(root().canonicalize().expect("the tree")).expect("below it").to_owned();
            if !file.starts_with("src") {
                all.push(file);
            }
        }
    }
    all
}

#[test]
fn compose_is_two_pods_of_one_image() {
    let [compose] = &documents("compose/compose.yaml")[..] else { panic!("one document") };
    let services = compose["services"].as_mapping().expect("services");
    assert_eq!(services.len(), 8);
    let built: Vec<_> =
        services.iter().filter(|(_, service)| !service["build"].is_null()).map(|(name, _)| name).collect();
    assert_eq!(built, ["front-adit"], "one image, built once");
    for arg in strings(at(compose, "services.front-adit.build.args")) {
        assert!(DOCKERFILE.contains(&format!("ARG {arg}=")), "{arg}");
    }

    let mesh: Value = serde_yaml::from_str(&file("compose/mesh.yaml")).expect("YAML");
    for name in ["front", "back"] {
        let part = |end: &str| &compose["services"][format!("{name}{end}").as_str()];
        let (net, daemon, redirect, app) = (part("-net"), part("-adit"), part("-redirect"), part(""));
        for joined in [daemon, redirect, app] {
            assert_eq!(joined["network_mode"], format!("service:{name}-net"));
            assert_eq!(strings(&joined["cap_drop"]), ["ALL"]);
            assert_eq!(joined["read_only"], true);
        }
        assert_eq!(daemon["image"], redirect["image"]);
        assert_eq!(at(redirect, &format!("depends_on.{name}-adit.condition")), "service_healthy");
        assert_eq!(at(app, &format!("depends_on.{name}-redirect.condition")), "service_completed_successfully");

        // adit is whom the rules leave alone, and nobody else is.
        let (user, group) = image_user();
        assert_eq!(daemon["user"], format!("{user}:{group}"));
        assert!(daemon["cap_add"].is_null());
        assert_eq!(redirect["user"], "0:0");
        assert_eq!(strings(&redirect["cap_add"]), ["NET_ADMIN"]);
        assert!(!app["user"].as_str().expect("a user").starts_with(&user.to_string()));
        rules_leave_adit_alone(&strings(&redirect["command"]));
        assert_eq!(strings(at(daemon, "healthcheck.test"))[1], BINARY);

        // Addresses and names are those of the mesh.
        let address = at(net, "networks.mesh.ipv4_address").as_str().expect("an address");
        assert_eq!(strings(at(&mesh, &format!("workloads.{name}.workloadIps"))), [address]);
        let service = at(&mesh, &format!("services.{name}"));
        let vip = strings(&service["vips"]).remove(0);
        let host = format!("{}:{}", service["hostname"].as_str().expect("a name"), vip.trim_start_matches('/'));
        assert!(strings(&net["extra_hosts"]).contains(&host), "{host}");
        let port = strings(&app["command"]).into_iter().skip_while(|word| word != "-p").nth(1).expect("a port");
        assert_eq!(service["ports"][80].as_u64(), port.parse().ok());

        // And adit has nothing against it.
        let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/compose/adit.yaml");
        let environment = daemon["environment"].as_mapping().expect("variables").iter();
        let variables: Vec<_> = environment.filter_map(|(key, value)| Some((key.as_str()?, value.as_str()?))).collect();
        let said = adit(&["check", "--config", config], &variables);
        assert!(said.contains(&format!("identity spiffe://cluster.local/ns/demo/sa/{name} ")), "{said}");
    }
    // front may ask back, through a tunnel.
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/compose/adit.yaml");
    let asked = ["explain", "--config", config, "--from", "10.177.0.10", "--to", "10.177.1.2:80"];
    let said = adit(&asked, &[("ADIT__WORKLOAD__NAME", "front")]);
    for want in ["tunnel to 10.177.0.20:15008", "allowed by: demo/only-front", "verdict      allowed"] {
        assert!(said.contains(want), "{want}: {said}");
    }
}

/// The one document of this kind and name.
fn manifest(documents: &[Value], kind: &str, name: &str) -> Value {
    let found = documents.iter().find(|it| it["kind"] == kind && at(it, "metadata.name") == name);
    found.cloned().unwrap_or_else(|| panic!("no {kind} {name}"))
}

#[test]
fn the_sidecar_pod_agrees_with_the_image() {
    let documents = documents("kubernetes/web.yaml");
    let set = manifest(&documents, "StatefulSet", "web");
    let pod = at(&set, "spec.template.spec");
    let (daemon, redirect, app) =
        (at(pod, "initContainers.adit"), at(pod, "initContainers.adit-redirect"), at(pod, "containers.app"));

    // The daemon stays and comes first; the rules follow once it has started.
    let order: Vec<_> = pod["initContainers"].as_sequence().expect("two").iter().map(|it| &it["name"]).collect();
    assert_eq!(order, ["adit", "adit-redirect"]);
    assert_eq!(daemon["restartPolicy"], "Always");
    assert!(redirect["restartPolicy"].is_null());
    assert_eq!(daemon["image"], redirect["image"]);
    assert_eq!(daemon["image"], format!("adit:{}", env!("CARGO_PKG_VERSION")));
    assert_eq!(
        instruction("CMD"),
        format!("[{}]", strings(&daemon["args"]).iter().map(|arg| format!("{arg:?}")).collect::<Vec<_>>().join(", "))
    );

    let (user, group) = image_user();
    for (container, user, group, added) in
        [(daemon, user, group, vec![]), (redirect, 0, 0, vec!["NET_ADMIN"]), (app, 1000, 1000, vec![])]
    {
        let security = &container["securityContext"];
        assert_eq!((security["runAsUser"].as_u64(), security["runAsGroup"].as_u64()), (Some(user), Some(group)));
        assert_eq!(security["runAsNonRoot"], user != 0);
        assert_eq!(
            (&security["allowPrivilegeEscalation"], &security["readOnlyRootFilesystem"]),
            (&false.into(), &true.into())
        );
        assert_eq!(strings(at(security, "capabilities.drop")), ["ALL"]);
        let add = at(security, "capabilities.add");
        assert_eq!(if add.is_null() { vec![] } else { strings(add) }, added);
    }
    assert_eq!(at(pod, "securityContext.fsGroup").as_u64(), Some(group));
    rules_leave_adit_alone(&strings(&redirect["args"]));

    // Ports and probes are those that adit has.
    let exposed: Vec<&str> = instruction("EXPOSE").split(' ').collect();
    for (name, port) in [("hbone", "15008"), ("metrics", "15020"), ("readiness", "15021")] {
        assert_eq!(at(daemon, &format!("ports.{name}.containerPort")).as_u64(), port.parse().ok());
        assert!(exposed.contains(&port), "{port}");
    }
    for (probe, path) in [("startup", "ready"), ("readiness", "ready"), ("liveness", "live")] {
        let get = &daemon[format!("{probe}Probe").as_str()]["httpGet"];
        assert_eq!((&get["path"], &get["port"]), (&format!("/healthz/{path}").into(), &"readiness".into()));
    }
    let monitor = manifest(&self::documents("kubernetes/podmonitor.yaml"), "PodMonitor", "adit");
    assert_eq!(monitor["apiVersion"], "monitoring.coreos.com/v1");
    assert_eq!(at(&monitor, "spec.selector.matchLabels"), at(&set, "spec.template.metadata.labels"));
    let scraped = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!((&scraped["port"], &scraped["path"]), (&"metrics".into(), &"/metrics".into()));

    // What is mounted is there, and the patch replaces a volume that there is.
    for container in [daemon, app] {
        for mount in container["volumeMounts"].as_sequence().expect("mounts") {
            let volume = format!("volumes.{}", mount["name"].as_str().expect("a name"));
            assert!(!at(pod, &volume).is_null(), "{volume}");
            assert!(mount["subPath"].is_null(), "what is mounted by subPath is never updated");
        }
    }
    let [patch] = &self::documents("kubernetes/cert-manager-csi.yaml")[..] else { panic!("one document") };
    let driver = at(patch, "spec.template.spec.volumes.certificates");
    assert_eq!(at(driver, "csi.driver"), "spiffe.csi.cert-manager.io");
    assert_eq!(driver["csi"]["volumeAttributes"]["spiffe.csi.cert-manager.io/fs-group"], group.to_string());
}

#[test]
fn the_settings_and_the_mesh_of_the_pods_are_valid() {
    let documents = documents("kubernetes/web.yaml");
    let map = manifest(&self::documents("kubernetes/adit.yaml"), "ConfigMap", "adit");
    let set = manifest(&documents, "StatefulSet", "web");
    let daemon = at(&set, "spec.template.spec.initContainers.adit");
    assert_eq!(at(&set, "spec.template.spec.volumes.settings.configMap.name"), "adit");

    // The folder of the certificates, here: a root and a leaf as the example's README has them made.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a plain path").to_owned();
    let id = "spiffe://cluster.local/ns/demo/sa/web";
    adit(&["certs", "issue", "root", "--out", &path("ca")], &[]);
    adit(&["certs", "issue", "leaf", "--ca", &path("ca"), "--id", id, "--out", &path("tls")], &[]);
    let mounted = at(daemon, "volumeMounts.certificates.mountPath").as_str().expect("a path");
    for (name, text) in map["data"].as_mapping().expect("files") {
        let text = text.as_str().expect("text");
        let text = text.replace(mounted, folder.path().to_str().expect("a plain path"));
        fs::write(path(name.as_str().expect("a name")), text).expect("a writable folder");
    }

    // Every replica, as the downward API names it.
    let service = manifest(&documents, "Service", "web");
    let vip = at(&service, "spec.clusterIP").as_str().expect("a fixed address");
    let named = |variable: &str| at(daemon, &format!("env.{variable}.valueFrom.fieldRef.fieldPath")).as_str();
    assert_eq!(named("ADIT__WORKLOAD__NAME"), Some("metadata.name"));
    assert_eq!(named("ADIT__WORKLOAD__NAMESPACE"), Some("metadata.namespace"));
    assert_eq!(named("ADIT__WORKLOAD__SERVICE_ACCOUNT"), Some("spec.serviceAccountName"));
    let headless = at(&set, "spec.serviceName").as_str().expect("a service");
    assert_eq!(at(&manifest(&documents, "Service", headless), "spec.clusterIP"), "None");
    for replica in 0..at(&set, "spec.replicas").as_u64().expect("a number") {
        let pod = format!("web-{replica}");
        let variables = [
            ("ADIT__WORKLOAD__NAME", pod.as_str()),
            ("ADIT__WORKLOAD__NAMESPACE", "demo"),
            ("ADIT__WORKLOAD__SERVICE_ACCOUNT", "web"),
        ];
        let config = path("adit.yaml");
        let said = adit(&["check", "--config", &config], &variables);
        assert!(said.contains("2 workloads") && said.contains(&format!("identity {id} ")), "{said}");
        // Whoever asks for the service is led to this pod, by the name that the headless service gives it, in a tunnel.
        let asked = format!("{vip}:80");
        let said = adit(&["explain", "--config", &config, "--from", "10.1.2.3", "--to", &asked], &variables);
        let tunnel = format!("tunnel to {pod}.{headless}.demo.svc.cluster.local:15008");
        assert!(said.contains(&tunnel), "{tunnel}: {said}");
    }
}
