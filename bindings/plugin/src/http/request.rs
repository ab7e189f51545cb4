//! Requests: what is read of one, and what is refused before it is whole.

use super::response::Response;

/// Maximum size of the first line and the headers.
pub(crate) const MAX_HEAD: usize = 8 << 10;
/// Maximum size of a body.
pub(crate) const MAX_BODY: usize = 64 << 10;
/// Maximum number of headers.
const MAX_HEADERS: usize = 64;

/// A request that was read whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// The path, without what follows a question mark.
    pub(crate) path: String,
    /// The host that the client believes to talk to.
    pub(crate) host: Option<String>,
    /// Whether a page in a browser asks.
    pub(crate) from_page: bool,
    pub(crate) body: Vec<u8>,
}

/// A request as far as it was read.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    bytes: Vec<u8>,
    /// The request without its body, and where that begins and ends.
    head: Option<(Request, usize, usize)>,
}

impl Reading {
    /// Adds bytes of the client. Returns the request once it is whole, or the answer to one that is refused.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Option<Result<Request, Response>> {
        self.bytes.extend_from_slice(bytes);
        if self.head.is_none() {
            match parse_head(&self.bytes) {
                Ok(Some(head)) => self.head = Some(head),
                Ok(None) => return None,
                Err(refused) => return Some(Err(refused)),
            }
        }
        let &mut (ref mut request, start, end) = self.head.as_mut()?;
        // A client that sends more than it said gets its answer without it.
        request.body = self.bytes.get(start..end)?.to_vec();
        self.head.take().map(|(request, ..)| Ok(request))
    }

    /// Whether the client has sent anything.
    pub(crate) fn has_begun(&self) -> bool {
        !self.bytes.is_empty()
    }
}

/// Parses the first line and the headers. `None` if there is more to come.
fn parse_head(bytes: &[u8]) -> Result<Option<(Request, usize, usize)>, Response> {
    let too_large = || Response::error(431, "the headers are larger than 8 KiB, or more than 64");
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let start = match parsed.parse(&bytes[..bytes.len().min(MAX_HEAD)]) {
        Ok(httparse::Status::Complete(start)) => start,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Err(too_large()),
        Err(error) => return Err(Response::error(400, &format!("no HTTP request: {error}"))),
    };
    let (Some(method), Some(target)) = (parsed.method, parsed.path) else {
        return Err(Response::error(400, "no HTTP request"));
    };
    let (mut length, mut host, mut from_page) = (None, None, false);
    for header in parsed.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let text = std::str::from_utf8(header.value).map(str::trim).unwrap_or("\u{fffd}");
        if is("content-length") {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let found = text.parse::<usize>().ok().filter(|_| digits);
            match found {
                // A number that does not fit is too large as well.
                None if digits => return Err(too_long()),
                None => return Err(Response::error(400, "Content-Length is no number")),
                Some(_) if length.is_some() => {
                    return Err(Response::error(400, "Content-Length is given twice"));
                }
                Some(found) => length = Some(found),
            }
        } else if is("transfer-encoding") {
            return Err(Response::error(411, "send the body with a Content-Length, not in chunks"));
        } else if is("host") {
            host = Some(text.to_owned());
        } else if is("origin") {
            from_page = true;
        }
    }
    if length.is_none() && matches!(method, "PUT" | "PATCH") {
        return Err(Response::error(411, "Content-Length is missing"));
    }
    let length = length.unwrap_or(0);
    if length > MAX_BODY {
        return Err(too_long());
    }
    let path = target.split(['?', '#']).next().unwrap_or_default().to_owned();
    let request = Request { method: method.to_owned(), path, host, from_page, body: Vec::new() };
    Ok(Some((request, start, start + length)))
}

fn too_long() -> Response {
    Response::error(413, "the body is larger than 64 KiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> Option<Result<Request, u16>> {
        Reading::default().add(bytes).map(|result| result.map_err(|refused| refused.status))
    }

    #[test]
    fn a_request_is_read_in_pieces_of_any_size() {
        let bytes = b"PUT /caps?x=1 HTTP/1.1\r\nHost: localhost:1\r\ncontent-LENGTH: 3\r\n\r\n{ }more";
        for size in 1..bytes.len() {
            let mut reading = Reading::default();
            assert!(!reading.has_begun());
            let request = bytes.chunks(size).find_map(|piece| reading.add(piece)).unwrap().unwrap();
            assert_eq!((&*request.method, &*request.path), ("PUT", "/caps"));
            assert_eq!((request.host.as_deref(), &*request.body), (Some("localhost:1"), &b"{ }"[..]));
            assert!(!request.from_page && reading.has_begun());
        }
        let page = whole(b"GET / HTTP/1.0\r\nOrigin: null\r\n\r\n").unwrap().unwrap();
        assert!(page.from_page && page.host.is_none());
        assert_eq!(whole(b""), None);
        assert_eq!(whole(b"GET / HTTP/1.1\r\nHost: x\r\n"), None);
        assert_eq!(whole(b"PUT / HTTP/1.1\r\nContent-Length: 4\r\n\r\nabc"), None);
    }

    #[test]
    fn what_is_too_large_or_no_request_is_refused_at_once() {
        let status = |bytes: &[u8]| whole(bytes).map(Result::unwrap_err);
        assert_eq!(status(b"\x16\x03\x01\x02\x00\x01\x00"), Some(400), "TLS");
        assert_eq!(status(b"hello\r\n\r\n"), Some(400));
        assert_eq!(status(b"GET / HTTP/2.0\r\n\r\n"), Some(400));
        assert_eq!(status(b"\0\0\0\0"), Some(400));
        let head = |headers: &str| format!("PUT /caps HTTP/1.1\r\n{headers}\r\n\r\n").into_bytes();
        for (headers, expected) in [
            ("Content-Length: 65537", 413),
            ("Content-Length: 99999999999999999999999", 413),
            ("Content-Length: -1", 400),
            ("Content-Length: +1", 400),
            ("Content-Length: 0x10", 400),
            ("Content-Length:", 400),
            ("Content-Length: 1\r\nContent-Length: 1", 400),
            ("Content-Length: 1, 1", 400),
            ("Content-Length: \u{e9}", 400),
            ("Transfer-Encoding: chunked", 411),
            ("Host: x", 411),
            ("no header", 400),
        ] {
            assert_eq!(status(&head(headers)), Some(expected), "{headers}");
        }
        assert_eq!(status(&head(&"X: y\r\n".repeat(65))), Some(431));
        let endless = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &[b'x'; MAX_HEAD]].concat();
        assert_eq!(status(&endless), Some(431));
        assert_eq!(status(&endless[..MAX_HEAD - 1]), None);
        let path = [b"GET /".as_slice(), &[b'x'; MAX_HEAD]].concat();
        assert_eq!(status(&path), Some(431));
    }
}
