//! Many clients that register the same name.

use std::sync::Barrier;
use std::thread::scope;

use devstack::Stack;
use devstack::testing::register;

use crate::problem;

#[test]
fn of_fifty_clients_that_race_for_a_name_one_gets_it_and_the_others_409() {
    let stack = Stack::shared();
    // Two replicas, so that only the table's key can decide.
    let replicas = [(); 2].map(|()| stack.user_svc().with_long_timeouts().start());
    for round in 0..3 {
        let name = format!("wanted-{round}");
        let start = Barrier::new(50);
        let statuses: Vec<u16> = scope(|scope| {
            let clients: Vec<_> = (0..50)
                .map(|number| {
                    let (service, name, start) = (&replicas[number % 2], &name, &start);
                    scope.spawn(move || {
                        start.wait();
                        let answer = register(service, name);
                        if answer.status != 201 {
                            assert_eq!(problem(&answer), "name-taken");
                        }
                        answer.status
                    })
                })
                .collect();
            clients.into_iter().map(|client| client.join().expect("answered")).collect()
        });
        let count = |status| statuses.iter().filter(|&&it| it == status).count();
        assert_eq!((count(201), count(409)), (1, 49), "{statuses:?}");
    }
}
