//! The files of `deploy/haproxy` that nothing else here runs.

use devstack::{Haproxy, Installed};

/// Only Debian's package makes the user of servers.cfg.
#[cfg(target_os = "linux")]
#[test]
fn haproxy_takes_the_lists_of_servers_that_are_examples() {
    let Some(program) = Installed::find("haproxy") else { return };
    for files in [&["haproxy.cfg", "servers.cfg"][..], &["haproxy.cfg", "compose.cfg"], &["redis.cfg"]] {
        let said = Haproxy::check(&program, files);
        assert!(said.as_ref().is_ok_and(|text| !text.contains("WARNING")), "{files:?}: {said:?}");
    }
    assert!(
        Haproxy::check(&program, &["haproxy.cfg"]).is_err(),
        "without a list there is nothing to lead to"
    );
}
