//! Resources that know their template, for logs and metrics.

use actix_web::dev::Handler;
use actix_web::{FromRequest, Resource, Responder, web};

/// A resource's template, for logs and metrics. The router could be asked for it only by routing a second time.
#[derive(Clone, Copy)]
pub struct Route(pub &'static str);

/// A resource at `template`.
pub fn resource(template: &'static str) -> Resource {
    web::resource(template).app_data(Route(template))
}

/// A resource at `template` that answers GET and HEAD by `handler`, and any other method with 405.
pub fn readable<F, A>(template: &'static str, handler: F) -> Resource
where
    F: Handler<A>,
    A: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    resource(template).route(web::get().to(handler.clone())).route(web::head().to(handler))
}
