//! `--help`, and that it is true.

use devstack::Stack;

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
fn the_example_file_names_every_setting_with_its_default() {
    let example = include_str!("../../../../.env.example");
    for setting in user_svc::settings() {
        let line = format!("#{}={}\n", setting.env, setting.default.unwrap_or_default());
        assert!(example.contains(&line), "{line}");
    }
}
