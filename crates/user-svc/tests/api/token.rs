//! `token new` and `token check`, and the starts that are refused since nobody would need a token.

use std::fs;
use std::io::Write as _;
use std::process::{Output, Stdio};

use devstack::ServiceBuilder;
use tempfile::TempDir;

const LINE: &str = "billing sha256:1111111111111111111111111111111111111111111111111111111111111111 read";

/// A service without stores.
fn bare() -> ServiceBuilder {
    ServiceBuilder::new("user-svc")
}

/// A new token and its line of the list.
fn new_token(arguments: &[&str]) -> (String, String) {
    let output = bare().run(&[&["token", "new"], arguments].concat());
    assert!(output.status.success(), "{}", error(&output));
    let stdout = String::from_utf8(output.stdout.clone()).expect("text");
    let token = stdout.strip_suffix('\n').expect("a line");
    assert!(token.starts_with("ut_") && token.len() == 46, "nothing but the token: {token:?}");
    let line = error(&output);
    assert!(!line.contains(token), "{line}");
    (token.to_owned(), line)
}

/// Runs `token check` with `input` on standard input.
fn check(service: &ServiceBuilder, input: &str) -> Output {
    let mut command = service.command(&["token", "check"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it runs");
    // A command that refuses its settings does not read.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    child.wait_with_output().expect("it ends")
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts that `token check` refuses `input`, says `why` and does not show it.
fn not_valid(service: &ServiceBuilder, input: &str, why: &str) {
    let output = check(service, input);
    let text = error(&output);
    assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(1), true), "{text}");
    assert!(text.contains(why) && (input.len() < 3 || !text.contains(input.trim())), "{text}");
}

/// Asserts that the start is refused with these mistakes alone, for both services.
fn start_refused(settings: &[(&str, &str)], mistakes: &[&str]) {
    for name in ["user-svc", "data-svc"] {
        let service = ServiceBuilder::new(name);
        let output = settings.iter().fold(service, |it, (name, value)| it.env(name, *value)).run(&[]);
        let text = error(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("  ")).collect();
        let as_expected = lines.iter().zip(mistakes).all(|(line, mistake)| line.starts_with(mistake));
        assert!(as_expected && lines.len() == mistakes.len(), "{mistakes:?} expected:\n{text}");
        assert!(!text.contains("1111") && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_new_token_is_known_once_its_line_is_in_the_list() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("tokens");
    let service = bare().env("API_TOKENS_FILE", path.display().to_string());
    let (old, old_line) = new_token(&["--name", "billing", "--scopes", "write,read"]);
    let (new, new_line) = new_token(&["--name", "billing", "--scopes", "admin", "--days", "90"]);
    assert!(old_line.starts_with("billing sha256:") && old_line.ends_with(" read,write\n"), "{old_line}");
    assert!(new_line.contains(" admin until=20") && new_line.ends_with("Z\n"), "{new_line}");

    fs::write(&path, format!("# rotation\n{old_line}{new_line}")).expect("written");
    for input in [old.clone(), format!("{old}\n"), format!("{old}\r\nmore")] {
        let output = check(&service, &input);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "billing: read,write, does not expire\n");
        assert_eq!(output.status.code(), Some(0), "{}", error(&output));
    }
    let output = check(&service, &new);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("billing: admin, until 20"), "{text}");

    fs::write(&path, new_line).expect("written");
    not_valid(&service, &old, "the list does not know this token");
}

#[test]
fn check_says_what_is_wrong_with_a_token_and_does_not_show_it() {
    let (token, line) = new_token(&["--name", "billing", "--scopes", "read"]);
    let expired = bare().env("API_TOKENS", format!("{} until=2020-01-01T00:00:00Z", line.trim_end()));
    not_valid(&expired, &token, "the token of billing expired at 2020-01-01T00:00:00Z");
    let other = bare().env("API_TOKENS", LINE);
    not_valid(&other, &token, "the list does not know this token");
    for malformed in ["", "\n", "hunter2", &token[..45], &format!("Bearer {token}"), &"x".repeat(100_000)] {
        not_valid(&other, malformed, "this is not a token");
    }
    not_valid(&bare(), &token, "there is no token list");
}

#[test]
fn new_takes_only_names_scopes_and_days_that_the_list_can_hold() {
    let wrong = [
        ["--name=Billing", "--scopes=read", "--days=1"],
        ["--name=", "--scopes=read", "--days=1"],
        ["--name=billing", "--scopes=", "--days=1"],
        ["--name=billing", "--scopes=read,delete", "--days=1"],
        ["--name=billing", "--scopes=read", "--days=0"],
        ["--name=billing", "--scopes=read", "--days=3651"],
    ];
    for arguments in wrong {
        let output = bare().run(&[&["token", "new"][..], &arguments].concat());
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(2), true), "{arguments:?}");
    }
}

#[test]
fn the_first_token_can_be_made_where_the_start_is_refused_for_lack_of_one() {
    let arguments = ["token", "new", "--name=billing", "--scopes=read"];
    let public = bare().env("HOST", "0.0.0.0");
    for service in [&public, &public.clone().env("API_TOKENS_FILE", "/nowhere/tokens")] {
        assert_eq!(service.run(&[]).status.code(), Some(2));
        assert_eq!(service.run(&arguments).status.code(), Some(0));
    }
}

#[test]
fn an_open_service_on_a_public_address_does_not_start_unless_that_is_meant() {
    for host in ["0.0.0.0", "::", "192.0.2.1"] {
        let mistake = format!(
            "HOST {host} is not loopback and nobody would be asked who they are: \
             set API_TOKENS_FILE (user-svc token new), or AUTH=none"
        );
        start_refused(&[("HOST", host)], &[&mistake]);
    }
    let service = bare().env("HOST", "0.0.0.0").env("AUTH", "none").spawn();
    service.terminate();
    let service = bare().env("HOST", "0.0.0.0").env("API_TOKENS", LINE).spawn();
    service.terminate();
}

#[test]
fn auth_none_and_a_list_contradict_each_other() {
    let mistake = "AUTH is none, and yet API_TOKENS is set: keep one";
    start_refused(&[("AUTH", "none"), ("API_TOKENS", LINE)], &[mistake]);
    let mistake = "AUTH is none, and yet API_TOKENS_FILE is set: keep one";
    start_refused(&[("AUTH", "none"), ("API_TOKENS_FILE", "/nowhere/tokens")], &[mistake]);
    start_refused(&[("AUTH", "some")], &["AUTH must be one of: auto, none"]);
}

#[test]
fn a_wrong_list_ends_the_start_and_every_wrong_line_is_named() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("tokens");
    let file = path.display().to_string();
    fs::write(&path, format!("{LINE}\nhunter2\n{LINE}\n# fine\n{LINE} rate=1/s\n")).expect("written");
    let lines = ["API_TOKENS_FILE line 2: ", "API_TOKENS_FILE line 3: ", "API_TOKENS_FILE line 5: "];
    start_refused(&[("PORT", "x"), ("API_TOKENS_FILE", &file)], &[&["PORT"], &lines[..]].concat());

    fs::write(&path, "# nobody\n").expect("written");
    start_refused(&[("API_TOKENS_FILE", &file)], &["API_TOKENS_FILE holds no token"]);
    start_refused(&[("API_TOKENS_FILE", "/nowhere")], &["API_TOKENS_FILE cannot read /nowhere: "]);
    start_refused(&[("API_TOKENS", "hunter2;;hunter2")], &["API_TOKENS line 1: ", "API_TOKENS line 3: "]);
    start_refused(
        &[("API_TOKENS", LINE), ("API_TOKENS_FILE", &file)],
        &["API_TOKENS is set, and so is its _FILE"],
    );
}
