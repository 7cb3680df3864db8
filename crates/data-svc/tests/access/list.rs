//! The token list while the services run: rotation, and lists that are wrong.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::scope;

use devstack::http;
use devstack::testing::{StopAtEnd, metric, wait_until};

use crate::{Client, ListFile, Services, lines, send};

#[test]
fn a_token_is_replaced_by_another_of_its_client_without_a_refusal_of_the_new_one() {
    let [old, new] = [(); 2].map(|()| Client::new("billing", "read"));
    let list = ListFile::of(&[&old, &new]);
    let services = Services::start(&list);
    let service = &services.data_svc;
    let stop = AtomicBool::new(false);
    let refused = AtomicUsize::new(0);
    scope(|scope| {
        let _stop = StopAtEnd(&stop);
        for client in 0..8 {
            let (stop, refused) = (&stop, &refused);
            let token = if client % 2 == 0 { &old } else { &new };
            let is_old = client % 2 == 0;
            scope.spawn(move || {
                let mut was_refused = false;
                while !stop.load(Ordering::Relaxed) {
                    let status = send(service, "GET", "/user/nobody", Some(&token.authorization())).status;
                    match status {
                        401 if is_old => {
                            if !was_refused {
                                refused.fetch_add(1, Ordering::Relaxed);
                            }
                            was_refused = true;
                        }
                        404 => assert!(!was_refused, "it was let in again"),
                        other => panic!("{other}"),
                    }
                }
            });
        }
        list.write(&lines(&[&new]));
        // Looked at every five seconds, without a signal.
        wait_until("the old one is refused everywhere", || refused.load(Ordering::Relaxed) == 4);
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_list_with_a_mistake_is_not_taken_and_each_line_is_named() {
    let client = Client::new("billing", "read");
    let list = ListFile::of(&[&client]);
    let services = Services::start(&list);
    let service = &services.data_svc;
    list.write(&format!("{}\nbroken\n\nother sha256:12 read\n", client.line));
    service.signal(devstack::Signal::HUP);
    let log = service.wait_for_log("line 2");
    assert!(log.contains("ERROR"), "{log}");
    service.wait_for_log("line 4");
    wait_until("it is stale", || metric(service, "auth_token_list_stale") == 1);
    assert_eq!(send(service, "GET", "/user/nobody", Some(&client.authorization())).status, 404);

    list.write(&client.line);
    wait_until("it is taken", || metric(service, "auth_token_list_stale") == 0);
    assert_eq!(http::get(&service.url_of("/user/nobody")).status, 401);
}
