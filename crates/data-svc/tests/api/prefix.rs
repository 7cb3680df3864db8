//! Both services behind a proxy that gives each a path prefix, and removes it before it sends requests on.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use devstack::{Stack, http};
use url::Url;

/// Starts a proxy that sends requests for `/users-api/` to the first and for `/data-api/` to the second address, which
/// `services` returns when it is given the proxy's URL. Its thread ends with the test.
fn proxy<T>(services: impl FnOnce(&str) -> (T, [String; 2])) -> (String, T) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let (started, [user_svc, data_svc]) = services(&url);
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let (user_svc, data_svc) = (user_svc.clone(), data_svc.clone());
            thread::spawn(move || pass_on(client, &[("/users-api", &user_svc), ("/data-api", &data_svc)]));
        }
    });
    (url, started)
}

/// Sends one request on, and its answer back.
fn pass_on(mut client: TcpStream, routes: &[(&str, &str)]) -> std::io::Result<()> {
    let mut request = BufReader::new(client.try_clone()?);
    let mut start = String::new();
    request.read_line(&mut start)?;
    let route = routes.iter().find(|(prefix, _)| start.contains(&format!(" {prefix}/")));
    let Some((prefix, address)) = route else { return client.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n") };
    let mut upstream = TcpStream::connect(address)?;
    let mut from_client = client.try_clone()?;
    let mut to_service = upstream.try_clone()?;
    to_service.write_all(start.replacen(prefix, "", 1).as_bytes())?;
    to_service.write_all(b"Connection: close\r\n")?;
    to_service.write_all(request.buffer())?;
    thread::spawn(move || std::io::copy(&mut from_client, &mut to_service));
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    client.write_all(&answer)
}

/// What `reference`, found in the answer for `base`, leads to.
fn resolved(base: &str, reference: &str) -> String {
    Url::parse(base).and_then(|base| base.join(reference)).expect("a reference").to_string()
}

#[test]
fn location_links_problems_and_the_page_lead_through_the_proxy() {
    let (url, _services) = proxy(|url| {
        let stack = Stack::shared();
        let [users, data] = ["users-api", "data-api"].map(|prefix| format!("{url}/{prefix}/"));
        let public = |builder: devstack::ServiceBuilder| {
            builder.env("PUBLIC_USER_URL", users.clone()).env("PUBLIC_DATA_URL", data.clone()).start()
        };
        let (user_svc, data_svc) = (public(stack.user_svc()), public(stack.data_svc()));
        let addresses = [&user_svc, &data_svc].map(|service| service.address().to_owned());
        ((user_svc, data_svc, stack), addresses)
    });

    let register = format!("{url}/users-api/register");
    let json = [("Content-Type", "application/json")];
    let registered = http::send("POST", &register, &json, r#"{"name":"a/b","info":"i"}"#);
    assert_eq!(registered.status, 201);
    let location = resolved(&register, registered.header("location").expect("a Location"));
    assert_eq!(location, format!("{url}/data-api/user/a%2Fb"));
    assert_eq!(http::get(&location).json()["info"], "i");

    for (prefix, other, problem) in
        [("users-api", "data-api", "/nope/x"), ("data-api", "users-api", "/user/nobody")]
    {
        let here = format!("{url}/{prefix}");
        let root = http::get(&format!("{here}/"));
        let docs = resolved(&format!("{here}/"), root.header("location").expect("a redirect"));
        assert_eq!(docs, format!("{here}/docs/"));
        assert_eq!(http::get(&docs).status, 200);

        let description = resolved(&docs, "../openapi.json");
        let api = http::get(&description).json();
        assert_eq!(
            resolved(&description, api["servers"][0]["url"].as_str().expect("a server")),
            format!("{here}/")
        );
        assert_eq!(api["externalDocs"]["url"], format!("{url}/{other}/docs/"));

        let asked = format!("{here}{problem}");
        let answer = http::get(&asked).json();
        assert_eq!(answer["instance"], format!("/{prefix}{problem}"));
        let explanation = resolved(&asked, answer["type"].as_str().expect("a type"));
        assert!(explanation.starts_with(&here) && http::get(&explanation).status == 200, "{explanation}");
    }

    let link = http::get(&format!("{url}/users-api/openapi.json")).json();
    let link = &link["paths"]["/register"]["post"]["responses"]["201"]["links"]["get_user"]["operationRef"];
    assert_eq!(link, &format!("{url}/data-api/openapi.json#/paths/~1user~1%7Bname%7D/get"));
}
