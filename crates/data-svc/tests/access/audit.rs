//! What the log says of clients, and what it never says.

use devstack::Stack;

use crate::{Client, ListFile, problem, send};

#[test]
fn each_write_and_each_refusal_has_an_audit_line_and_no_line_has_a_token_or_a_name() {
    let [writer, reader, unknown] = [("the-writer", "write"), ("the-reader", "read"), ("unknown", "admin")]
        .map(|(name, scope)| Client::new(name, scope));
    let list = ListFile::of(&[&writer, &reader]);
    let stack = Stack::shared();
    let path = list.path().display().to_string();
    let builders = [stack.user_svc(), stack.data_svc()];
    let [user_svc, data_svc] = builders.map(|service| {
        service.env("API_TOKENS_FILE", &path).env("RUST_LOG", "trace").env("LOG_FORMAT", "json").start()
    });
    assert_eq!(send(&user_svc, "POST", "/register", Some(&writer.authorization())).status, 201);
    assert_eq!(send(&user_svc, "PUT", "/user/john", Some(&writer.authorization())).status, 200);
    assert_eq!(send(&data_svc, "GET", "/user/john", Some(&reader.authorization())).status, 200);
    for authorization in
        [reader.authorization(), unknown.authorization(), format!("{}x", writer.authorization())]
    {
        let answer = send(&user_svc, "DELETE", "/user/john", Some(&authorization));
        assert!(matches!(answer.status, 401 | 403), "{}", problem(&answer));
    }
    user_svc.wait_for_log(r#""message":"DELETE (refused) 403""#);
    let audit = |log: &str| -> Vec<String> {
        log.lines().filter(|line| line.contains(r#""target":"audit""#)).map(str::to_owned).collect()
    };
    user_svc.terminate();
    user_svc.wait();
    let lines = audit(&user_svc.log());
    let expected = [
        ("POST /register 201", "the-writer"),
        ("PUT /user/{name} 200", "the-writer"),
        ("DELETE (refused) 403", "-"),
        ("DELETE (refused) 401", "-"),
        ("DELETE (refused) 401", "-"),
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for ((message, client), line) in expected.into_iter().zip(&lines) {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!((line["message"].as_str(), line["client"].as_str()), (Some(message), Some(client)));
        assert!(line["request_id"].as_str().is_some_and(|id| id.len() == 32), "{line}");
    }
    for log in [user_svc.log(), data_svc.log()] {
        for client in [&writer, &reader, &unknown] {
            let digest = client.line.split(' ').nth(1).expect("a digest").trim_start_matches("sha256:");
            assert!(!log.contains(&client.token) && !log.contains(digest));
        }
        assert!(!log.contains("john"), "a name is personal data");
    }
}

#[test]
fn a_flood_of_refusals_is_counted_and_not_logged_one_by_one() {
    let list = ListFile::of(&[&Client::new("reader", "read")]);
    let stack = Stack::shared();
    let service = stack.data_svc().env("API_TOKENS_FILE", list.path().display().to_string()).start();
    for _ in 0..300 {
        assert_eq!(send(&service, "GET", "/user/john", None).status, 401);
    }
    service.wait_for_log("more requests were not let in");
    let lines = service.log().matches("(refused)").count();
    assert!(lines < 100, "{lines}");
}
