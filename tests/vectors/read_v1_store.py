"""Where the independent reader gets objects from: a directory bucket, or S3 with nothing but the standard library."""

import datetime
import hashlib
import hmac
import os
import urllib.error
import urllib.parse
import urllib.request


class Dir:
    """A directory bucket. Paths are escaped keys: `%25`, `%00`, `%2E` as in URLs, `%-` for an empty component, and a component
    ending in `%+` goes on in the next one."""

    def __init__(self, root):
        self.paths = {}
        root = os.fsencode(root)
        for at, dirs, names in os.walk(root):
            if at == root and b".%tmp" in dirs:
                dirs.remove(b".%tmp")
            for name in names:
                path = os.path.join(at, name)
                self.paths[self.key(os.path.relpath(path, root))] = path

    @staticmethod
    def key(path):
        key, joined = "", True
        for component in os.fsdecode(path).split("/"):
            key += "" if joined else "/"
            joined = component.endswith("%+")
            component = component.removesuffix("%+")
            key += "" if component == "%-" else urllib.parse.unquote(component, errors="surrogateescape")
        return key

    def get(self, key):
        path = self.paths.get(key)
        if path is None:
            return None
        with open(path, "rb") as f:
            return f.read()


class S3:
    """GET with an AWS signature, version 4 (path-style)."""

    def __init__(self, bucket, prefix):
        env = os.environ.get
        self.region = env("AWS_REGION") or env("AWS_DEFAULT_REGION") or "us-east-1"
        self.endpoint = env("AWS_ENDPOINT_URL_S3") or env("AWS_ENDPOINT_URL") or f"https://s3.{self.region}.amazonaws.com"
        self.id, self.secret, self.token = env("AWS_ACCESS_KEY_ID", ""), env("AWS_SECRET_ACCESS_KEY", ""), env("AWS_SESSION_TOKEN")
        self.bucket, self.prefix = bucket, prefix

    def get(self, key):
        path = "/" + urllib.parse.quote(f"{self.bucket}/{self.prefix}{key}", safe="/-_.~")
        url = urllib.parse.urlsplit(self.endpoint)
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        empty = hashlib.sha256(b"").hexdigest()
        headers = {"host": url.netloc, "x-amz-content-sha256": empty, "x-amz-date": now}
        if self.token:
            headers["x-amz-security-token"] = self.token
        names = ";".join(sorted(headers))
        canonical = "\n".join(
            ["GET", path, "", *(f"{k}:{headers[k]}" for k in sorted(headers)), "", names, empty]
        )
        scope = f"{now[:8]}/{self.region}/s3/aws4_request"
        to_sign = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        signing = ("AWS4" + self.secret).encode()
        for part in scope.split("/"):
            signing = hmac.new(signing, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(signing, to_sign.encode(), hashlib.sha256).hexdigest()
        headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={self.id}/{scope}, SignedHeaders={names}, Signature={signature}"
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{url.scheme}://{url.netloc}{path}", headers=headers)) as answer:
                return answer.read()
        except urllib.error.HTTPError as e:
            if e.code == 404:
                return None
            raise


def open_store(url):
    """A store from a directory, dir:///path, or s3://bucket[/prefix]."""
    if url.startswith("s3://"):
        bucket, _, prefix = url[5:].partition("/")
        return S3(bucket, prefix.rstrip("/") + "/" if prefix.rstrip("/") else "")
    return Dir(urllib.parse.unquote(url[6:]) if url.startswith("dir://") else url)
