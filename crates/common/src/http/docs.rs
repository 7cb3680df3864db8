//! What a service says about itself: `/openapi.json`, `/docs/` (Swagger UI, served from the binary) and
//! `/problems/<slug>`.

use std::io;
use std::sync::Arc;

use actix_web::http::header::{CACHE_CONTROL, LOCATION};
use actix_web::web::{Bytes, Data, Path, ServiceConfig};
use actix_web::{HttpResponse, HttpResponseBuilder};
use utoipa::openapi::OpenApi;

use super::problem::KINDS;
use super::route::readable;

/// The description, as it is sent.
pub struct Docs {
    openapi: Bytes,
    swagger: Arc<utoipa_swagger_ui::Config<'static>>,
}

impl Docs {
    /// Prepares the answers for `api`.
    ///
    /// # Errors
    /// A description that cannot be written as JSON: a mistake of ours.
    pub fn new(api: &OpenApi) -> io::Result<Self> {
        let openapi = api.to_json().map_err(io::Error::other)?.into();
        // The validator's badge would send the description to a service outside.
        let swagger = utoipa_swagger_ui::Config::from("/openapi.json").validator_url("none");
        Ok(Self { openapi, swagger: Arc::new(swagger) })
    }
}

/// Adds the routes of the documentation.
pub fn routes(config: &mut ServiceConfig) {
    config.service(readable("/openapi.json", openapi));
    config.service(readable("/docs", || async {
        HttpResponse::PermanentRedirect().insert_header((LOCATION, "/docs/")).finish()
    }));
    config.service(readable("/docs/{file:.*}", swagger_file));
    config.service(readable("/problems/{slug}", problem));
}

async fn openapi(docs: Data<Docs>) -> HttpResponse {
    revalidated(HttpResponse::Ok()).content_type("application/json").body(docs.openapi.clone())
}

async fn swagger_file(docs: Data<Docs>, file: Path<String>) -> HttpResponse {
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

/// A kind of problem, explained: what the `type` of an error answer leads to.
async fn problem(slug: Path<String>) -> HttpResponse {
    match KINDS.iter().find(|kind| kind.slug == *slug) {
        Some(kind) => HttpResponse::Ok()
            .content_type("text/plain; charset=utf-8")
            .body(format!("{} ({})\n\n{}\n", kind.title, kind.status, kind.explanation)),
        None => HttpResponse::NotFound().finish(),
    }
}

/// A new version of the service brings new documentation: a copy must not outlive it.
fn revalidated(mut response: HttpResponseBuilder) -> HttpResponseBuilder {
    response.insert_header((CACHE_CONTROL, "no-cache"));
    response
}
