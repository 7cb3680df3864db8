//! The pages at `/docs/` of both services, as a person sees them in a browser.
//!
//! A program of its own, so that no other test runs beside the browser, which needs much of the machine.

mod browser;

use std::io::Write;

use devstack::testing::register;
use devstack::{Service, ServiceBuilder, Stack, free_port};
use serde_json::{Value, json};

use self::browser::Browser;

/// A window on a desk, and one on a phone.
const WIDTHS: [u32; 2] = [1280, 390];

/// All that the tests look at, once Swagger UI has shown the operations.
const SEEN: &str = "({
    tab: document.title,
    title: document.querySelector('.info .title').firstChild.textContent.trim(),
    tags: [...document.querySelectorAll('.opblock-tag')].map(tag => [
        tag.dataset.tag, tag.querySelector('small').innerText.trim() != ''
    ]),
    operations: [...document.querySelectorAll('.opblock-summary')].map(operation => [
        operation.querySelector('.opblock-summary-method').innerText,
        operation.querySelector('.opblock-summary-path').dataset.path
    ].join(' ')),
    explore_bars: document.querySelectorAll('.topbar, .download-url-wrapper').length,
    badges: document.querySelectorAll('.float-right, img[src*=validator]').length,
    licence_links: document.querySelectorAll('.info__license a').length,
    open_schemas: document.querySelectorAll('.models.is-open').length,
    folded_schemas: document.querySelectorAll('.models').length,
    other: document.querySelector('a.info__extdocs').href,
})";

/// Both services, each of which knows the other's address.
struct Services {
    user_svc: Service,
    data_svc: Service,
    stack: Stack,
}

impl Services {
    fn start() -> Self {
        let stack = Stack::shared();
        let port = free_port().to_string();
        let user_url = format!("http://127.0.0.1:{port}");
        let data_svc = stack.data_svc().env("PUBLIC_USER_URL", user_url).start();
        let user_svc = stack.user_svc().env("PORT", port).env("PUBLIC_DATA_URL", data_svc.url()).start();
        Self { user_svc, data_svc, stack }
    }
}

/// The browser, or `None` with a word that the test is skipped.
fn browser() -> Option<Browser> {
    let browser = Browser::start();
    if browser.is_none() {
        // Not `eprintln!`, which the test harness shows only for tests that fail.
        let _ = writeln!(std::io::stderr(), "skipped, since there is no Chromium on PATH: tests/page");
    }
    browser
}

/// Opens the root of `service`, which leads to the page, and waits for as many operations.
fn open(browser: &mut Browser, service: &Service, width: u32, operations: usize) {
    browser.open(&service.url_of("/"), width);
    browser.wait_until(&format!("document.querySelectorAll('.opblock-summary').length == {operations}"));
}

fn has_called_nobody_else(browser: &Browser, service: &Service) {
    assert_eq!(browser.failures(), [""; 0]);
    for request in browser.requests() {
        assert!(request.starts_with(&service.url_of("/")), "{request}");
    }
}

/// Whether everything is within a window of `width`, without scrolling sideways.
fn fits(browser: &mut Browser, width: u32) -> bool {
    browser.evaluate("document.documentElement.scrollWidth").as_u64().is_some_and(|used| used <= width.into())
}

#[test]
fn both_pages_show_their_operations_by_tag_and_lead_to_each_other() {
    let Some(mut browser) = browser() else { return };
    let services = Services::start();
    let (user_svc, data_svc) = (&services.user_svc, &services.data_svc);
    let seen = |title: &str, operations: &[&str], other: &Service| -> Value {
        json!({
            "tab": title,
            "title": title,
            "tags": [["users", true], ["operations", true]],
            "operations": operations,
            "explore_bars": 0,
            "badges": 0,
            "licence_links": 0,
            "open_schemas": 0,
            "folded_schemas": 1,
            "other": other.url_of("/docs/"),
        })
    };
    let writes = ["POST /register", "PUT /user/{name}", "DELETE /user/{name}"];
    let reads = ["GET /user/{name}"];
    let health = ["GET /livez", "GET /readyz", "GET /version"];
    for width in WIDTHS {
        open(&mut browser, user_svc, width, 6);
        assert_eq!(browser.evaluate(SEEN), seen("user-svc", &[&writes[..], &health].concat(), data_svc));
        has_called_nobody_else(&browser, user_svc);

        open(&mut browser, data_svc, width, 4);
        assert_eq!(browser.evaluate(SEEN), seen("data-svc", &[&reads[..], &health].concat(), user_svc));
        has_called_nobody_else(&browser, data_svc);
    }
}

#[test]
fn nothing_on_a_page_is_wider_than_the_window_even_with_all_operations_open() {
    let Some(mut browser) = browser() else { return };
    let services = Services::start();
    for width in WIDTHS {
        for (service, operations) in [(&services.user_svc, 6), (&services.data_svc, 4)] {
            open(&mut browser, service, width, operations);
            assert!(fits(&mut browser, width), "{} at {width}", service.url());
            browser
                .evaluate("document.querySelectorAll('.opblock-summary-control').forEach(it => it.click())");
            browser
                .wait_until(&format!("document.querySelectorAll('.responses-table').length == {operations}"));
            assert!(fits(&mut browser, width), "{} at {width}, open", service.url());
            has_called_nobody_else(&browser, service);
        }
    }
}

#[test]
fn a_user_can_be_registered_from_the_page() {
    let Some(mut browser) = browser() else { return };
    let services = Services::start();
    open(&mut browser, &services.user_svc, WIDTHS[0], 6);
    for (button, next) in [
        (".opblock-post .opblock-summary-control", ".opblock-post .try-out__btn"),
        (".opblock-post .try-out__btn", ".opblock-post .execute"),
        (".opblock-post .execute", ".live-responses-table .response"),
    ] {
        browser.evaluate(&format!("document.querySelector('{button}').click()"));
        browser.wait_until(&format!("document.querySelector('{next}')"));
    }
    let status = "document.querySelector('.live-responses-table .response .response-col_status').innerText";
    assert_eq!(browser.evaluate(&format!("{status}.trim()")), "201");
    has_called_nobody_else(&browser, &services.user_svc);
}

#[test]
fn the_page_that_has_registered_a_user_can_follow_its_location_to_the_other_service() {
    let Some(mut browser) = browser() else { return };
    let services = Services::start();
    open(&mut browser, &services.user_svc, WIDTHS[0], 6);
    browser.evaluate(
        "(async () => {
            const headers = {'content-type': 'application/json'};
            const body = JSON.stringify({name: 'followed', info: 'i'});
            const registered = await fetch('../register', {method: 'POST', headers, body});
            const location = registered.headers.get('location');
            const found = await fetch(location, {headers: {'cache-control': 'no-cache'}});
            const tag = found.headers.get('etag') == registered.headers.get('etag');
            window.followed = [found.status, (await found.json()).name, tag];
        })()",
    );
    browser.wait_until("window.followed");
    assert_eq!(browser.evaluate("window.followed"), json!([200, "followed", true]));
    assert_eq!(browser.failures(), [""; 0]);
}

/// DNS rebinding: a page of a foreign name that resolves to this machine is of one origin with the service.
#[test]
fn a_page_of_a_foreign_name_that_leads_here_can_neither_read_nor_write_users() {
    let Some(mut browser) = browser() else { return };
    let services = Services::start();
    register(&services.user_svc, "john");
    for service in [&services.user_svc, &services.data_svc] {
        // Any path that answers to every name stands for the attacker's page.
        browser.open(&service.url_of("/livez").replace("127.0.0.1", "rebound.test"), WIDTHS[0]);
        browser.evaluate(
            "(async () => {
                const body = JSON.stringify({name: 'rebound', info: 'i'});
                const json = {headers: {'content-type': 'application/json'}, body};
                const status = async (path, how) => (await fetch(path, how)).status;
                window.statuses = [
                    await status('/user/john'),
                    await status('/register', {method: 'POST', ...json}),
                    await status('/user/john', {method: 'PUT', ...json}),
                    await status('/user/john', {method: 'DELETE'}),
                    await status('/openapi.json'),
                ];
            })()",
        );
        browser.wait_until("window.statuses");
        assert_eq!(
            browser.evaluate("[location.hostname, ...window.statuses]"),
            json!(["rebound.test", 421, 421, 421, 421, 421])
        );
    }
    assert_eq!(services.stack.sql("SELECT name, info FROM users"), "john|some info");
}

#[test]
fn the_page_takes_a_token_by_its_authorize_button_exactly_when_the_service_asks_for_one() {
    let Some(mut browser) = browser() else { return };
    let services = Services::start();
    open(&mut browser, &services.data_svc, WIDTHS[0], 4);
    assert_eq!(browser.evaluate("document.querySelectorAll('.btn.authorize').length"), json!(0));

    let made = ServiceBuilder::new("user-svc").run(&["token", "new", "--name", "page", "--scopes", "read"]);
    let [token, line] =
        [made.stdout, made.stderr].map(|text| String::from_utf8(text).expect("UTF-8").trim().to_owned());
    let service = services.stack.data_svc().env("API_TOKENS", line).start();
    open(&mut browser, &service, WIDTHS[0], 4);
    browser.evaluate("document.querySelector('.btn.authorize').click()");
    browser.wait_until("document.querySelector('.auth-container input')");
    browser.evaluate(&format!(
        "(() => {{
            const input = document.querySelector('.auth-container input');
            const setter = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set;
            setter.call(input, '{token}');
            input.dispatchEvent(new Event('input', {{bubbles: true}}));
            input.dispatchEvent(new Event('change', {{bubbles: true}}));
        }})()"
    ));
    for (button, next) in [
        (".auth-btn-wrapper .authorize", ".auth-btn-wrapper .btn-done"),
        (".auth-btn-wrapper .btn-done", ".opblock-get .opblock-summary-control"),
        (".opblock-get .opblock-summary-control", ".opblock-get .try-out__btn"),
        (".opblock-get .try-out__btn", ".opblock-get .execute"),
    ] {
        browser.evaluate(&format!("document.querySelector('{button}').click()"));
        browser.wait_until(&format!("document.querySelector('{next}')"));
    }
    let name = "document.querySelector('.opblock-get .parameters input')";
    browser.evaluate(&format!(
        "(() => {{
            const setter = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set;
            setter.call({name}, 'nobody');
            {name}.dispatchEvent(new Event('input', {{bubbles: true}}));
            {name}.dispatchEvent(new Event('change', {{bubbles: true}}));
        }})()"
    ));
    browser.evaluate("document.querySelector('.opblock-get .execute').click()");
    browser.wait_until("document.querySelector('.live-responses-table .response')");
    let status = "document.querySelector('.live-responses-table .response .response-col_status').innerText";
    assert_eq!(
        browser.evaluate(&format!("{status}.split('\\n')[0].trim()")),
        "404",
        "let in, and no such user"
    );
}
