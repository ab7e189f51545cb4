//! Which answer a request gets.

use super::caps;
use super::change::{self, Change};
use super::control::Control;
use super::metrics;
use super::request::Request;
use super::response::Response;

/// Answers a request. `unix` says whether it came through a unix socket.
pub(crate) fn answer(control: &Control, unix: bool, request: &Request) -> Response {
    if request.from_page {
        return Response::error(403, "pages in a browser are not served");
    }
    if !unix && !request.host.as_deref().is_some_and(is_this_machine) {
        return Response::error(403, "the Host header must name 127.0.0.1, [::1] or localhost");
    }
    match (&*request.path, &*request.method) {
        ("/metrics", "GET") => Response::metrics(metrics::text(control)),
        ("/caps", "GET") => Response::json(200, &caps::describe(control)),
        ("/caps", "PUT") => match Change::parse(&request.body) {
            Ok(change) => change::apply(control, change),
            Err(reason) => Response::error(400, &reason),
        },
        ("/reload", "POST") => {
            let files = Some(control.origin().files.clone());
            change::apply(control, Change { files, ..Change::default() })
        }
        ("/metrics", _) => Response::not_allowed("GET"),
        ("/caps", _) => Response::not_allowed("GET, PUT"),
        ("/reload", _) => Response::not_allowed("POST"),
        _ => Response::error(404, "there are /metrics, /caps and /reload"),
    }
}

/// Whether a Host header names this machine. A page whose name resolves to this machine has a name of its own.
fn is_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    matches!(name, "127.0.0.1" | "[::1]") || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_taken() {
        for host in ["127.0.0.1", "127.0.0.1:8181", "[::1]", "[::1]:8181", "LocalHost:1", "localhost"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in ["", "example.com", "127.0.0.1.example.com", "localhost.example.com:1", "[::2]:1", ":80"]
        {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
