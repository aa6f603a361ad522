//! Connections: taken up to a number, ended when a client is too slow, and let finish when the
//! server stops.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

use crate::Bounds;
use crate::app::{App, router};
use crate::metrics;

/// Longest head of a request: its headers and its path.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Headers of a request.
const MAX_HEADERS: usize = 100;
/// Wait after an error of the operating system that says it has no more connections to give.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop`, and then what has begun, as long as it may.
pub(crate) async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    metrics: Option<TcpListener>,
    stop: impl Future<Output = ()>,
) {
    let (graceful, bounds) = (GracefulShutdown::new(), app.bounds);
    let mut stop = pin!(stop);
    let routes = router(&app);
    if let Some(listener) = metrics {
        let open = Router::new().route("/metrics", get(open_metrics)).with_state(app.clone());
        // It ends with the program.
        tokio::spawn(async move {
            let places = Arc::new(Semaphore::new(64));
            loop {
                take(&listener, &places, &open, bounds, None).await;
            }
        });
    }
    let places = Arc::new(Semaphore::new(bounds.connections));
    loop {
        tokio::select! {
            () = take(&listener, &places, &routes, bounds, Some(&graceful)) => {}
            () = &mut stop => break,
        }
    }
    // Who asks a load balancer is sent elsewhere; who is connected hears that it is the last answer.
    app.is_draining.store(true, Ordering::Release);
    drop(listener);
    if tokio::time::timeout(bounds.drain_wait, graceful.shutdown()).await.is_err() {
        tracing::warn!(
            "{} texts were not done in {} s and are given up",
            app.flights.len(),
            bounds.drain_wait.as_secs()
        );
    }
}

async fn open_metrics(State(app): State<Arc<App>>) -> axum::response::Response {
    use axum::response::IntoResponse;
    metrics::written(&app).into_response()
}

/// Takes one connection and serves it on a task of its own.
async fn take(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    routes: &Router,
    bounds: Bounds,
    graceful: Option<&GracefulShutdown>,
) {
    let place = places.clone().acquire_owned().await.expect("the places are never closed");
    let stream = match listener.accept().await {
        Ok((stream, _)) => stream,
        Err(error) => {
            tracing::warn!("a connection could not be taken: {error}");
            return tokio::time::sleep(PAUSE).await;
        }
    };
    let service = TowerToHyperService::new(routes.clone());
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head_wait)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES);
    let connection =
        server.serve_connection(TokioIo::new(Box::pin(timed(stream, bounds))), service);
    let run = async move |connection: std::pin::Pin<
        Box<dyn Future<Output = hyper::Result<()>> + Send>,
    >| {
        // Whoever breaks off a connection is no news.
        let _ = connection.await;
        drop(place);
    };
    match graceful {
        Some(graceful) => tokio::spawn(run(Box::pin(graceful.watch(connection)))),
        None => tokio::spawn(run(Box::pin(connection))),
    };
}

/// A stream that fails when its client takes nothing for too long.
fn timed(stream: TcpStream, bounds: Bounds) -> TimeoutStream<TcpStream> {
    // Small chunks are to go at once; where that cannot be set they come a little later.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(bounds.write_wait));
    stream
}
