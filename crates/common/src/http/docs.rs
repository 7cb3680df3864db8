//! The documentation of a service, served from its binary: `/openapi.json`, `/docs/` (Swagger UI) and
//! `/problems/<slug>`.

use std::io;
use std::sync::Arc;

use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue, LOCATION, REFERRER_POLICY,
};
use actix_web::web::{Bytes, Data, Path, ServiceConfig};
use actix_web::{HttpResponse, HttpResponseBuilder};
use url::Url;
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::Config;

use super::description::complete;
use super::guard::Guard;
use super::problem::KINDS;
use super::route::readable;

/// The file of Swagger UI that is its page.
const PAGE: &str = "index.html";
/// The page's style, in addition to Swagger UI's own.
const STYLE: &str = include_str!("docs.css");

/// The description and its page, as they are sent.
pub struct Docs {
    openapi: Bytes,
    page: Bytes,
    page_policy: HeaderValue,
    swagger: Arc<Config<'static>>,
}

impl Docs {
    /// Prepares the answers for `api`, whose requests `guard` lets in.
    ///
    /// # Errors
    /// A description that cannot be written as JSON, or no page in the binary: bugs.
    pub fn new(api: &OpenApi, guard: &Guard) -> io::Result<Self> {
        let api = complete(api.clone(), guard);
        let openapi = api.to_json().map_err(io::Error::other)?.into();
        let swagger = Arc::new(swagger());
        let page = page(&api.info.title, &swagger)?;
        let page_policy = page_policy(&api)?;
        Ok(Self { openapi, page, page_policy, swagger })
    }
}

/// The page runs its own scripts alone, calls this service and the other one, and may be framed by no page. (Swagger UI
/// has styles within its elements.)
fn page_policy(api: &OpenApi) -> io::Result<HeaderValue> {
    let other = api.external_docs.as_ref().and_then(|docs| Url::parse(&docs.url).ok());
    let other = other.map(|url| url.origin().ascii_serialization()).unwrap_or_default();
    let policy = format!(
        "default-src 'self'; connect-src 'self' {other}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
         frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).map_err(io::Error::other)
}

/// How Swagger UI shows the description. The address is relative to the page, so that it works behind a path prefix.
fn swagger() -> Config<'static> {
    let config = Config::from("../openapi.json");
    // The default layout has a bar on top that loads the description of any service.
    let config = config.use_base_layout();
    // Schemas are folded: the operations show what is needed of them.
    let config = config.default_models_expand_depth(0);
    // The validator's badge would send the description to a service outside.
    config.validator_url("none")
}

/// Swagger UI's page with a title of its own, fit for windows of any width.
fn page(title: &str, swagger: &Arc<Config<'static>>) -> io::Result<Bytes> {
    let file = utoipa_swagger_ui::serve(PAGE, swagger.clone())
        .map_err(|error| io::Error::other(error.to_string()))?;
    let file = file.ok_or_else(|| io::Error::other("Swagger UI has no page"))?;
    let viewport = r#"<meta name="viewport" content="width=device-width, initial-scale=1">"#;
    let head = format!("<title>{title}</title>{viewport}<style>{STYLE}</style>");
    let page = String::from_utf8_lossy(&file.bytes).replace("<title>Swagger UI</title>", &head);
    Ok(page.into())
}

/// Adds the routes of the documentation. Redirects are relative, so that they work behind a path prefix.
pub fn routes(config: &mut ServiceConfig) {
    config.service(readable("/", || async {
        let mut redirect = HttpResponse::TemporaryRedirect();
        // No client may remember this: the root may get a page of its own one day.
        redirect.insert_header((CACHE_CONTROL, "no-store")).insert_header((LOCATION, "docs/")).finish()
    }));
    config.service(readable("/openapi.json", openapi));
    config.service(readable("/docs", || async {
        HttpResponse::PermanentRedirect().insert_header((LOCATION, "docs/")).finish()
    }));
    config.service(readable("/docs/{file:.*}", swagger_file));
    config.service(readable("/problems/{slug}", problem));
}

async fn openapi(docs: Data<Docs>) -> HttpResponse {
    revalidated(HttpResponse::Ok()).content_type("application/json").body(docs.openapi.clone())
}

async fn swagger_file(docs: Data<Docs>, file: Path<String>) -> HttpResponse {
    if file.is_empty() || *file == PAGE {
        let mut page = revalidated(HttpResponse::Ok());
        page.insert_header((CONTENT_SECURITY_POLICY, docs.page_policy.clone()))
            .insert_header((REFERRER_POLICY, "no-referrer"));
        return page.content_type("text/html").body(docs.page.clone());
    }
    match utoipa_swagger_ui::serve(&file, docs.swagger.clone()) {
        Ok(Some(file)) => {
            revalidated(HttpResponse::Ok()).content_type(file.content_type).body(file.bytes.into_owned())
        }
        Ok(None) => HttpResponse::NotFound().finish(),
        Err(error) => {
            log::error!("Swagger UI cannot be served: {error}");
            HttpResponse::InternalServerError().finish()
        }
    }
}

/// Explains a kind of problem: the `type` of an error answer is the path of this page.
async fn problem(slug: Path<String>) -> HttpResponse {
    match KINDS.iter().find(|kind| kind.slug == *slug) {
        Some(kind) => HttpResponse::Ok()
            .content_type("text/plain; charset=utf-8")
            .body(format!("{} ({})\n\n{}\n", kind.title, kind.status, kind.explanation)),
        None => HttpResponse::NotFound().finish(),
    }
}

/// A new version of the service brings new documentation, so a client checks its copy before each use.
fn revalidated(mut response: HttpResponseBuilder) -> HttpResponseBuilder {
    response.insert_header((CACHE_CONTROL, "no-cache"));
    response
}
