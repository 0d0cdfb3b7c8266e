//! Answers of web servers.

/// Reads the input as the head of an answer, and as the lines of a chunked body.
pub fn head(data: &[u8]) {
    ramdisk_agent::store::read_any_http(data);
}

/// Answers as nginx, Apache, S3 and a controller give them, and some that contradict themselves.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let heads = [
        "HTTP/1.1 206 Partial Content\r\nServer: nginx/1.22.1\r\nContent-Length: 100\r\nETag: \"656f-1f\"\r\n\
         Last-Modified: Sun, 01 Nov 2026 10:00:00 GMT\r\nContent-Range: bytes 0-99/200\r\nConnection: keep-alive\r\n\r\n",
        "HTTP/1.1 302 Found\r\nLocation: https://other.example/x?sig=1#f\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: Fri, 06 Nov 2026 08:50:37 GMT\r\nConnection: x, Close\r\n\r\n",
        "HTTP/1.0 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
        "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */200\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nRetry-After: 18446744073709551615\r\n\r\n4;x=y\r\ndata\r\n0\r\nT: x\r\n\r\n",
    ];
    heads.iter().map(|head| head.as_bytes().to_vec()).collect()
}
