//! Policies, in the local format and as manifests.

use super::*;
use crate::mesh::policy::fixture::{any_policy, writable};
use crate::mesh::policy::{Action, Policy, Scope};

/// The only policy of a file.
fn policy(text: &str) -> Policy {
    let contents = parsed(text);
    assert_eq!(contents.policies.len(), 1, "{text}");
    Policy::clone(&contents.policies[0].1)
}

/// The rules of a policy as a dump has them, without quotes.
fn rules(policy: &Policy) -> String {
    let mut builder = SnapshotBuilder::new(&Snapshot::default());
    builder.apply(Change::PutPolicy(Arc::new(policy.clone())));
    builder.finish().to_document()["policies"][0]["rules"].to_string().replace('"', "")
}

fn local(action: &str, rules: &str) -> String {
    format!(
        "policies:\n- {{name: p, namespace: a, scope: Namespace, action: {action}, dryRun: false, rules: {rules}}}\n"
    )
}

#[test]
fn a_match_may_be_written_as_tags_and_as_maps() {
    let texts = "[{Exact:x},{Prefix:y},{Suffix:z},{Presence:[]}]";
    for written in [
        "[!Exact x, !Prefix y, !Suffix z, !Presence []]",
        "[{exact: x}, {prefix: y}, {suffix: z}, {presence: []}]",
        r#"[{"Exact":"x"}, {"Prefix":"y"}, {"Suffix":"z"}, {"Presence":[]}]"#,
        "[!exact x, !Prefix y, {Suffix: z}, !Presence {}]",
        "[{exact: \"x\"}, !Prefix \"y\", {suffix: 'z'}, {presence: {}}]",
    ] {
        let policy = policy(&local("Allow", &format!("[[[{{principals: {written}, notNamespaces: {written}}}]]]")));
        assert_eq!(rules(&policy), format!("[[[{{notNamespaces:{texts},principals:{texts}}}]]]"), "{written}");
    }
    let block = "policies:\n- name: p\n  namespace: a\n  scope: Global\n  action: Deny\n  dryRun: true\n  rules:\n  - - - namespaces:\n        - !Exact b\n        - !Presence\n";
    let policy = policy(block);
    assert_eq!((policy.scope, policy.action, policy.dry_run), (Scope::Global, Action::Deny, true));
    assert_eq!((policy.key.as_str(), rules(&policy).as_str()), ("a/p", "[[[{namespaces:[{Exact:b},{Presence:[]}]}]]]"));
}

#[test]
fn empty_lists_and_rules_keep_their_meaning() {
    for (action, written, want) in [
        ("Allow", "[]", "[]"),
        ("Deny", "[]", "[]"),
        ("Deny", "[[]]", "[[]]"),
        ("Deny", "[[[]]]", "[[[]]]"),
        ("Allow", "[[[{}]]]", "[[[{}]]]"),
        ("Allow", "[[[{namespaces: []}]]]", "[[[{}]]]"),
        ("Deny", "[[[{namespaces: [], destinationPorts: [80]}]]]", "[[[{destinationPorts:[80]}]]]"),
        (
            "Allow",
            "[[[{sourceIps: [10.1.2.3/8, '::ffff:10.0.0.0/104']}]]]",
            "[[[{sourceIps:[10.0.0.0/8,10.0.0.0/8]}]]]",
        ),
    ] {
        assert_eq!(rules(&policy(&local(action, written))), want, "{action} {written}");
    }
}

/// Each in its own policy, so that each is seen to be refused by itself.
#[test]
fn what_cannot_be_enforced_is_refused() {
    let kinds = "expected one of exact, prefix, suffix or presence, such as {exact: x} or !Exact x";
    let rows: [(&str, &str, String); 26] = [
        ("Allow", "{principal: [!Exact x]}", ".principal: unknown key\n  hint: did you mean \"principals\"?".into()),
        ("Deny", "{destinationPort: [80]}", ".destinationPort: unknown key\n  hint: did you mean \"destinationPorts\"?".into()),
        ("Allow", "{principals: [x]}", format!(".principals[0]: found \"x\", {kinds}\n  hint: write {{exact: \"x\"}}")),
        ("Allow", "{principals: [!Exakt x]}", format!(".principals[0]: found \"Exakt\", {kinds}\n  hint: did you mean \"exact\"?")),
        ("Allow", "{principals: [{regex: x}]}", format!(".principals[0]: found \"regex\", {kinds}")),
        ("Allow", "{principals: [{exact: x, prefix: y}]}", format!(".principals[0]: found a map, {kinds}")),
        ("Allow", "{principals: [{}]}", format!(".principals[0]: found a map, {kinds}")),
        ("Allow", "{principals: [7]}", format!(".principals[0]: found 7, {kinds}")),
        ("Allow", "{namespaces: [{exact: ''}]}", ".namespaces[0]: found \"\", expected text that is not empty\n  hint: for anything at all, write {presence: []}".into()),
        ("Allow", "{namespaces: [!Prefix '']}", ".namespaces[0]: found \"\", expected text that is not empty\n  hint: for anything at all, write {presence: []}".into()),
        ("Allow", "{namespaces: [{suffix: }]}", ".namespaces[0]: found nothing, expected text that is not empty\n  hint: for anything at all, write {presence: []}".into()),
        ("Allow", "{namespaces: [{exact: 1.10}]}", ".namespaces[0]: found 1.1, expected text\n  hint: put it in quotes: \"1.1\"".into()),
        ("Allow", "{principals: [!Exact 'spiffe://td/ns/a/sa/b']}", ".principals[0]: found \"spiffe://td/ns/a/sa/b\", expected a principal without spiffe://\n  hint: write \"td/ns/a/sa/b\"".into()),
        ("Deny", "{notPrincipals: [{prefix: 'spiffe://'}]}", ".notPrincipals[0]: found \"spiffe://\", expected a principal without spiffe://".into()),
        ("Allow", "{principals: [{presence: yes please}]}", ".principals[0]: found \"yes please\", expected []\n  hint: presence has no value".into()),
        ("Allow", "{principals: [{presence: }]}", ".principals[0]: found nothing, expected []\n  hint: presence has no value".into()),
        ("Allow", "{sourceIps: [10.0.0.0/33]}", ".sourceIps[0]: found \"10.0.0.0/33\", expected a range such as 10.0.0.0/8".into()),
        ("Allow", "{notDestinationIps: [10.0.0.1]}", ".notDestinationIps[0]: found \"10.0.0.1\", expected a range such as 10.0.0.0/8".into()),
        ("Allow", "{destinationPorts: [0]}", ".destinationPorts[0]: found 0, expected a port, 1 to 65535".into()),
        ("Allow", "{notDestinationPorts: [65536]}", ".notDestinationPorts[0]: found 65536, expected a port, 1 to 65535".into()),
        ("Allow", "{serviceAccounts: [{namespace: a}]}", ".serviceAccounts[0].serviceAccount: missing key".into()),
        ("Allow", "{serviceAccounts: [a/b]}", ".serviceAccounts[0]: found \"a/b\", expected a map".into()),
        ("Allow", "{namespaces: }", ".namespaces: found nothing, expected a list".into()),
        ("Deny", "{}", ": an empty match never matches, so it would deny nobody\n  hint: say what it should match; to deny everybody, leave the clauses of the rule out: rules: [[]]".into()),
        ("Deny", "{principals: [], notSourceIps: []}", ": an empty match never matches, so it would deny nobody\n  hint: say what it should match; to deny everybody, leave the clauses of the rule out: rules: [[]]".into()),
        ("Allow", "", ": found nothing, expected a map".into()),
    ];
    for (action, written, want) in rows {
        let text = format!(
            "policies:\n- name: p\n  namespace: a\n  scope: Namespace\n  action: {action}\n  dryRun: false\n  rules:\n  - - - {written}\n"
        );
        let all = refused(&text);
        let [one] = all.as_slice() else { panic!("{written}: {all:?}") };
        let (place, said) = one.split_once(": policies[0].rules[0][0][0]").unwrap_or_else(|| panic!("{one}"));
        assert_eq!(said, want, "{written}");
        assert!(place.starts_with("mesh.yaml:8:"), "{one}");
    }
}

#[test]
fn a_policy_that_is_not_all_there_is_refused() {
    for (text, want) in [
        (
            "policies:\n- name: p\n",
            vec![
                "mesh.yaml:2:3: policies[0].namespace: missing key",
                "mesh.yaml:2:3: policies[0].scope: missing key",
                "mesh.yaml:2:3: policies[0].action: missing key",
                "mesh.yaml:2:3: policies[0].rules: missing key",
            ],
        ),
        (
            "policies:\n- {name: a/b, namespace: '', scope: global, action: DENY, dryRun: 1, rules: }\n",
            vec![
                "mesh.yaml:2:10: policies[0].name: found \"a/b\", expected text that is not empty and has no slash",
                "mesh.yaml:2:26: policies[0].namespace: found \"\", expected text that is not empty and has no slash",
                "mesh.yaml:2:37: policies[0].scope: found \"global\", expected Global, Namespace or WorkloadSelector\n  hint: did you mean \"Global\"?",
                "mesh.yaml:2:53: policies[0].action: found \"DENY\", expected Allow or Deny\n  hint: did you mean \"Deny\"?",
                "mesh.yaml:2:67: policies[0].dryRun: found 1, expected true or false",
                "mesh.yaml:2:75: policies[0].rules: found nothing, expected a list",
            ],
        ),
        (
            "policies:\n- {name: p, namespace: a, scope: Global, action: Allow, rules: [{from: []}], rule: []}\n",
            vec![
                "mesh.yaml:2:65: policies[0].rules[0]: found a map, expected a list",
                "mesh.yaml:2:78: policies[0].rule: unknown key\n  hint: did you mean \"rules\"?",
            ],
        ),
        ("policies:\n", vec!["mesh.yaml:1:9: policies: found nothing, expected a list"]),
    ] {
        let mut problems = refused(text);
        let mut want: Vec<String> = want.into_iter().map(str::to_owned).collect();
        problems.sort();
        want.sort();
        assert_eq!(problems, want, "{text}");
    }
}

/// A file of the shape of ztunnel's example.
#[test]
fn a_file_of_ztunnels_shape_loads_as_it_is() {
    let snapshot = snapshot(&parsed(include_str!("localhost.yaml")));
    assert_eq!((snapshot.workload_count(), snapshot.service_count(), snapshot.policy_count()), (2, 2, 1));
    assert_eq!(snapshot.missing_policies().count(), 0);
    let local = snapshot.workload_by_uid("cluster1//v1/Pod/default/local").unwrap();
    let view = snapshot.policies_for(local);
    assert_eq!(view.policies().iter().map(|it| it.key.as_str()).collect::<Vec<_>>(), ["default/all-but-9999"]);
    assert_eq!(rules(view.policies()[0]), "[[[{notDestinationPorts:[9999]}]]]");
    let remote = snapshot.workload_by_uid("cluster1//v1/Pod/default/remote").unwrap();
    assert!(snapshot.policies_for(remote).is_empty());
}

// ---- manifests ----

/// In namespace `shop`, with this specification.
fn manifest(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    )
}

#[test]
fn a_manifest_as_kubectl_prints_it_is_a_policy() {
    let text = "\
workloads: [{name: w, namespace: shop, workloadIps: []}]
---
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata:
  annotations:
    istio.io/dry-run: \"true\"
    kubectl.kubernetes.io/last-applied-configuration: '{}'
  creationTimestamp: 2026-01-01T00:00:00Z
  generation: 2
  labels: { app: shop }
  managedFields: []
  name: only-cart
  namespace: shop
  resourceVersion: \"17\"
  uid: 0-0
spec:
  action: DENY
  rules:
  - from:
    - source:
        notPrincipals: [cluster.local/ns/shop/sa/cart]
status: {}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: nobody, namespace: istio-system }
spec: {}
";
    let contents = parsed(text);
    let [(_, first), (site, second)] = contents.policies.as_slice() else { panic!("{contents:?}") };
    assert_eq!((first.key.as_str(), first.scope, first.action), ("shop/only-cart", Scope::Namespace, Action::Deny));
    assert!(first.dry_run && !second.dry_run);
    assert_eq!(rules(first), "[[[{notPrincipals:[{Exact:cluster.local/ns/shop/sa/cart}]}]]]");
    assert_eq!(
        (second.key.as_str(), second.scope, second.action),
        ("istio-system/nobody", Scope::Global, Action::Allow)
    );
    assert_eq!(rules(second), "[]");
    let place = positions(text, [(Section::Policies, *site)]);
    assert_eq!((site.key_path(Section::Policies).as_str(), place[0].unwrap().line), ("metadata.name", 27));
    assert_eq!(contents.workloads.len(), 1);
}

#[test]
fn each_rule_becomes_what_istiod_makes_of_it() {
    let rows = [
        ("{}", "[]"),
        ("{rules: []}", "[]"),
        ("{rules: [{}]}", "[[]]"),
        ("{selector: {}, rules: [{}]}", "[[]]"),
        ("{selector: {matchLabels: {}}, action: ALLOW, rules: [{}]}", "[[]]"),
        (
            "{rules: [{from: [{source: {principals: ['*', 'td/*', '*/sa/x', td/ns/a/sa/x]}}]}]}",
            "[[[{principals:[{Presence:[]},{Prefix:td/},{Suffix:/sa/x},{Exact:td/ns/a/sa/x}]}]]]",
        ),
        (
            "{rules: [{from: [{source: {namespaces: [a, 'b*'], notNamespaces: ['*c']}}, {source: {notPrincipals: ['*']}}]}]}",
            "[[[{namespaces:[{Exact:a},{Prefix:b}],notNamespaces:[{Suffix:c}]},{notPrincipals:[{Presence:[]}]}]]]",
        ),
        (
            "{rules: [{from: [{source: {ipBlocks: [10.0.0.1, 10.1.0.0/16, '::1'], notIpBlocks: [10.1.1.0/24]}}]}]}",
            "[[[{notSourceIps:[10.1.1.0/24],sourceIps:[10.0.0.1/32,10.1.0.0/16,::1/128]}]]]",
        ),
        (
            "{rules: [{from: [{source: {serviceAccounts: [cart, web/front], notServiceAccounts: [a]}}]}]}",
            "[[[{notServiceAccounts:[{namespace:shop,serviceAccount:a}],serviceAccounts:[{namespace:shop,serviceAccount:cart},{namespace:web,serviceAccount:front}]}]]]",
        ),
        (
            "{rules: [{to: [{operation: {ports: ['80', 443]}}, {operation: {notPorts: ['22']}}]}]}",
            "[[[{destinationPorts:[80,443]},{notDestinationPorts:[22]}]]]",
        ),
        (
            "{rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {ports: ['80']}}], when: [{key: source.ip, values: [10.0.0.0/8], notValues: [10.0.0.1]}, {key: source.namespace, notValues: [b]}]}]}",
            "[[[{namespaces:[{Exact:a}]}],[{destinationPorts:[80]}],[{notSourceIps:[10.0.0.1/32],sourceIps:[10.0.0.0/8]}],[{notNamespaces:[{Exact:b}]}]]]",
        ),
        (
            "{rules: [{when: [{key: source.principal, values: ['*']}, {key: source.serviceAccount, values: [a]}]}, {when: [{key: destination.ip, values: [10.0.0.1]}, {key: destination.port, notValues: ['80']}]}]}",
            "[[[{principals:[{Presence:[]}]}],[{serviceAccounts:[{namespace:shop,serviceAccount:a}]}]],[[{destinationIps:[10.0.0.1/32]}],[{notDestinationPorts:[80]}]]]",
        ),
    ];
    assert_eq!(rows.len(), 12);
    for (spec, want) in rows {
        assert_eq!(rules(&policy(&manifest(spec))), want, "{spec}");
    }
}

#[test]
fn what_a_manifest_asks_beyond_connections_is_refused_by_name() {
    let http = ["requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks"]
        .map(|key| (format!("{{rules: [{{from: [{{source: {{{key}: [x]}}}}]}}]}}"), format!("spec.rules[0].from[0].source.{key}: cannot be enforced here: it is about HTTP requests, and adit sees connections")));
    let operations = ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"]
        .map(|key| (format!("{{rules: [{{to: [{{operation: {{ports: ['80'], {key}: [x]}}}}]}}]}}"), format!("spec.rules[0].to[0].operation.{key}: cannot be enforced here: it is about HTTP requests, and adit sees connections")));
    let others = [
        ("{action: AUDIT}", "spec.action: found \"AUDIT\", expected ALLOW or DENY"),
        ("{action: CUSTOM, provider: {name: x}}", "spec.provider: cannot be enforced here: only ALLOW and DENY can"),
        ("{selector: {matchLabels: {app: x}}}", "spec.selector: cannot be enforced here: workloads of mesh files have no labels"),
        ("{selector: }", "spec.selector: cannot be enforced here: workloads of mesh files have no labels"),
        ("{targetRef: {kind: Gateway}}", "spec.targetRef: cannot be enforced here: it is for another proxy"),
        ("{targetRefs: [{kind: Gateway}]}", "spec.targetRefs: cannot be enforced here: it is for another proxy"),
        ("{rules: [{when: [{key: 'request.headers[x]', values: [a]}]}]}", "spec.rules[0].when[0].key: found \"request.headers[x]\", expected source.ip"),
        ("{rules: [{when: [{key: remote.ip, values: [10.0.0.1]}]}]}", "spec.rules[0].when[0].key: found \"remote.ip\", expected source.ip"),
        ("{rules: [{when: [{key: source.ip}]}]}", "spec.rules[0].when[0].values: missing key"),
        ("{rules: [{when: [{key: source.ip, values: []}]}]}", "spec.rules[0].when[0].values: an empty list"),
        ("{rules: [{when: []}]}", "spec.rules[0].when: an empty list"),
        ("{rules: [{from: []}]}", "spec.rules[0].from: an empty list"),
        ("{rules: [{from: [{}]}]}", "spec.rules[0].from[0].source: missing key"),
        ("{rules: [{from: [{source: {}}]}]}", "spec.rules[0].from[0].source: an empty map"),
        ("{rules: [{from: [{source: {namespaces: []}}]}]}", "spec.rules[0].from[0].source.namespaces: an empty list"),
        ("{rules: [{from: [{source: {principal: [x]}}]}]}", "spec.rules[0].from[0].source.principal: unknown key"),
        ("{rules: [{from: [{source: {principals: ['spiffe://td/*']}}]}]}", "spec.rules[0].from[0].source.principals[0]: found \"spiffe://td/*\", expected a principal without spiffe://"),
        ("{rules: [{from: [{source: {principals: ['a*b']}}]}]}", "spec.rules[0].from[0].source.principals[0]: found \"a*b\", expected text with a *"),
        ("{rules: [{from: [{source: {principals: ['*a*']}}]}]}", "spec.rules[0].from[0].source.principals[0]: found \"*a*\", expected text with a *"),
        ("{rules: [{from: [{source: {principals: ['']}}]}]}", "spec.rules[0].from[0].source.principals[0]: found \"\", expected text that is not empty"),
        ("{rules: [{from: [{source: {serviceAccounts: ['a/*']}}]}]}", "spec.rules[0].from[0].source.serviceAccounts[0]: found \"a/*\", expected namespace/account"),
        ("{rules: [{from: [{source: {ipBlocks: [10.0.0]}}]}]}", "spec.rules[0].from[0].source.ipBlocks[0]: found \"10.0.0\", expected an address or a range"),
        ("{rules: [{to: [{operation: {ports: ['0']}}]}]}", "spec.rules[0].to[0].operation.ports[0]: found \"0\", expected a port"),
        ("{rules: [{to: [{operation: {ports: [http]}}]}]}", "spec.rules[0].to[0].operation.ports[0]: found \"http\", expected a port"),
        ("{rules: }", "spec.rules: found nothing, expected a list"),
        ("{rules: [ ~ ]}", "spec.rules[0]: found nothing, expected a map"),
        ("{rule: []}", "spec.rule: unknown key"),
        ("", "spec: found nothing, expected a map, which may be {}"),
    ]
    .map(|(spec, want)| (spec.to_owned(), want.to_owned()));
    let rows: Vec<(String, String)> = http.into_iter().chain(operations).chain(others).collect();
    assert_eq!(rows.len(), 38);
    for (spec, want) in rows {
        let all = refused(&manifest(&spec));
        let said = |it: &String| it.starts_with("mesh.yaml:4:") && it.contains(&format!(": {want}"));
        assert!(all.iter().any(said), "{spec}: {all:?}");
        assert!(all.len() <= 2, "{spec}: {all:?}");
    }
}

#[test]
fn other_manifests_and_half_ones_are_refused() {
    let whole = manifest("{}");
    for (from, to, want) in [
        (
            "kind: AuthorizationPolicy",
            "kind: Service",
            "mesh.yaml:2:7: kind: found \"Service\", expected AuthorizationPolicy",
        ),
        (
            "kind: AuthorizationPolicy",
            "kind: List",
            "mesh.yaml:2:7: kind: found \"List\", expected AuthorizationPolicy",
        ),
        ("kind: AuthorizationPolicy", "status: {}", "mesh.yaml:1:1: kind: missing key"),
        (
            "security.istio.io/v1",
            "security.istio.io/v2",
            "mesh.yaml:1:13: apiVersion: found \"security.istio.io/v2\", expected security.istio.io/v1 or security.istio.io/v1beta1",
        ),
        ("apiVersion: security.istio.io/v1\n", "", "mesh.yaml:1:1: apiVersion: missing key"),
        ("name: p, ", "", "mesh.yaml:3:1: metadata.name: missing key"),
        ("namespace: shop", "namspace: shop", "mesh.yaml:3:21: metadata.namspace: unknown key"),
        (
            "namespace: shop",
            "namespace: ''",
            "mesh.yaml:3:32: metadata.namespace: found \"\", expected text that is not empty and has no slash",
        ),
        (
            "namespace: shop",
            "namespace: shop, annotations: {istio.io/dry-run: yes}",
            "mesh.yaml:3:70: metadata.annotations[\"istio.io/dry-run\"]: found \"yes\", expected true or false",
        ),
        ("spec: {}\n", "", "mesh.yaml:1:1: spec: missing key"),
        ("spec: {}", "spec: {}\nworkloads: []", "mesh.yaml:5:1: workloads: unknown key"),
        ("spec: {}", "spec: {}\nspec: {}", "mesh.yaml:5:1: spec: duplicate key"),
    ] {
        let all = refused(&whole.replacen(from, to, 1));
        assert!(all.iter().any(|it| it.starts_with(want)), "{to}: {all:?}");
    }
}

proptest! {
    #[test]
    fn no_manifest_panics(
        at in 0..600_usize, cut in 0..40_usize, put in prop::collection::vec(any::<u8>(), 0..4)
    ) {
        let whole = manifest("{action: DENY, rules: [{from: [{source: {principals: ['td/*'], notIpBlocks: [10.0.0.1]}}], to: [{operation: {ports: ['80']}}], when: [{key: source.namespace, values: ['*']}]}]}");
        let mut bytes = whole.into_bytes();
        let at = at.min(bytes.len());
        let end = (at + cut).min(bytes.len());
        bytes.splice(at..end, put);
        drop(parse(Path::new("m"), &bytes, &Names::default()));
    }

    /// Whatever a policy says, its dump says the same; as JSON, as YAML, and with tags.
    #[test]
    fn a_policy_that_is_dumped_is_the_same_policy(policy in any_policy().prop_map(writable)) {
        let mut builder = SnapshotBuilder::new(&Snapshot::default());
        builder.apply(Change::PutPolicy(Arc::new(policy.clone())));
        let json = builder.finish().to_document();
        let yaml = serde_yaml::to_string(&json).unwrap();
        for text in [json.to_string(), yaml] {
            prop_assert_eq!(&*parsed(&text).policies[0].1, &policy);
        }
    }
}
