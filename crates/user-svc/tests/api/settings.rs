//! `--help`, the configuration page and the example file agree with the settings.

use std::collections::BTreeMap;

use devstack::{ServiceBuilder, Stack};

/// Defaults by environment variable; empty where a setting has none.
type Defaults = BTreeMap<String, String>;

#[test]
fn help_names_every_setting_with_its_default() {
    let help = Stack::shared().user_svc().run(&["--help"]);
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.status.success());
    for setting in user_svc::settings() {
        assert!(text.contains(&format!("[env: {}]", setting.env)), "{}", setting.env);
        if let Some(default) = setting.default {
            assert!(text.contains(&format!("[default: {default}]")), "{}", setting.env);
        }
    }
}

#[test]
fn the_configuration_page_and_the_example_file_agree_with_help() {
    let page = include_str!("../../../../docs/configuration.md");
    let user_svc = defaults_in_help("user-svc");
    let mut either = defaults_in_help("data-svc");
    assert_eq!(defaults_on_page(page, 2), user_svc, "docs/configuration.md, user-svc");
    assert_eq!(defaults_on_page(page, 3), either, "docs/configuration.md, data-svc");

    // The example file has one line for both services. If their defaults differ, it has user-svc's.
    either.extend(user_svc);
    let example = include_str!("../../../../.env.example");
    assert_eq!(defaults_in_example(example), either, ".env.example");
}

/// Reads `... [env: PORT] [default: 8080]`.
fn defaults_in_help(service: &str) -> Defaults {
    let help = ServiceBuilder::new(service).run(&["--help"]);
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    let defaults: Defaults = text
        .split("[env: ")
        .skip(1)
        .map(|setting| {
            let (name, rest) = setting.split_once(']').expect("a closing bracket");
            let default = rest.split_once("[default: ").and_then(|(_, rest)| rest.split_once(']'));
            (name.to_owned(), default.map_or("", |(default, _)| default).to_owned())
        })
        .collect();
    assert!(!defaults.is_empty(), "{text}");
    defaults
}

/// Reads rows of the section "Settings": the variable, both defaults in back quotes, and a text.
fn defaults_on_page(page: &str, column: usize) -> Defaults {
    let (_, section) = page.split_once("\n## Settings\n").expect("a section");
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    let ours = cells.filter(|cells| cells[column] != "–");
    let unquoted = |cell: &str| cell.trim_matches('`').to_owned();
    ours.map(|cells| {
        let default = if cells[column] == "none" { String::new() } else { unquoted(cells[column]) };
        (unquoted(cells[1]), default)
    })
    .collect()
}

/// Reads lines such as `#PORT=8080`, up to those for `make up`.
fn defaults_in_example(example: &str) -> Defaults {
    let (settings, _) = example.split_once("\n# For `make up`").expect("a part for make up");
    let lines = settings.lines().filter_map(|line| line.strip_prefix('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs
        .filter(|(name, _)| name.bytes().all(|letter| letter.is_ascii_uppercase() || letter == b'_'))
        .map(|(name, default)| (name.to_owned(), default.to_owned()))
        .collect()
}
