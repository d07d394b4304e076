//! Applications of real frameworks as plugins: FastAPI, Starlette, Litestar, Flask, Django, Hono, Express.
//!
//! The frameworks are installed once, beside the test's own binary, from PyPI and npm.
//! Where a registry or its tool cannot be reached the test says so and is skipped.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use serde_json::{Value, json};
use toru_tests::{
    Daemon, Stage, has_program, long_output, profile_folder, repository, wait_for, write_executable,
};

/// A folder below the target directory that `install` fills, once for each content of `manifest`.
fn installed(
    name: &str,
    manifest: &str,
    install: impl FnOnce(&Path) -> Result<(), String>,
) -> Option<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let wanted = fs::read_to_string(repository().join("tests/frameworks").join(manifest)).unwrap();
    let folder = profile_folder().join("toru-test-frameworks").join(name);
    let done = folder.join("installed");
    if fs::read_to_string(&done).is_ok_and(|text| text == wanted) {
        return Some(folder);
    }
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    match install(&folder) {
        Ok(()) => {
            fs::write(done, wanted).unwrap();
            Some(folder)
        }
        Err(reason) => {
            println!("skipped: {name} cannot be installed: {reason}");
            None
        }
    }
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let printed = long_output(command);
    if printed.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&printed.stderr)))
}

/// A Python with the frameworks, and the SDK on its path.
fn python() -> Option<PathBuf> {
    let folder = installed("python", "requirements.txt", |folder| {
        succeed(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        let wanted = repository().join("tests/frameworks/requirements.txt");
        let pip = folder.join("bin/pip");
        succeed(
            Command::new(pip).args(["install", "--quiet", "--disable-pip-version-check", "-r"]).arg(wanted),
        )
    })?;
    Some(folder.join("bin/python"))
}

/// A folder whose `node_modules` has the frameworks and the SDK.
fn node() -> Option<PathBuf> {
    if !has_program("node") || !has_program("npm") {
        println!("skipped: no node or npm here");
        return None;
    }
    installed("node", "package.json", |folder| {
        fs::copy(repository().join("tests/frameworks/package.json"), folder.join("package.json")).unwrap();
        succeed(
            Command::new("npm").args(["install", "--no-audit", "--no-fund", "--silent"]).current_dir(folder),
        )?;
        let sdk = folder.join("node_modules/toru-plugin");
        let _ = fs::remove_file(&sdk);
        std::os::unix::fs::symlink(repository().join("plugin-api/node"), sdk)
            .map_err(|error| error.to_string())
    })
}

/// The three-line shell script that the guide shows, with the SDK of this tree.
fn python_plugin(stage: &Stage, python: &Path, kind: &str, id: &str, application: &str) {
    fs::write(stage.plugins().join(format!("{}.py", id.replace('-', "_"))), application).unwrap();
    let script = format!(
        "#!/bin/sh\ncd \"$(dirname \"$0\")\"\nPYTHONPATH={} exec {} -m toru_plugin.{kind} {}:app --id {id} \"$@\"\n",
        repository().join("plugin-api/python/src").display(),
        python.display(),
        id.replace('-', "_"),
    );
    write_executable(&stage.plugins().join(format!("{id}.binary")), &script);
}

/// Frameworks are imported for seconds where the machine is busy.
fn patient_stage() -> Stage {
    Stage::new().set("supervisor.ready_timeout_ms", 60_000)
}

/// What every one of the applications does, each in the words of its framework.
fn check(daemon: &Daemon, id: &str) {
    // `--metadata` has five seconds, in which a busy machine may not have started Python: a reload asks again.
    let mut skipped = 0;
    wait_for(&format!("{id} to be known"), || {
        if daemon.status(id).is_some() {
            return Some(());
        }
        let is_about = |line: &Value| line["file"].as_str().is_some_and(|file| file.contains(id));
        let now = daemon.supervisor_log().iter().filter(|line| is_about(line)).count();
        if now > skipped {
            skipped = now;
            daemon.hang_up();
        }
        None
    });
    daemon.wait_ready(id);
    let at = |path: &str| format!("/api/plugins/{id}{path}");
    let answer = daemon.get(&at("/"));
    assert_eq!((answer.status, answer.json()), (200, json!({"hello": "world"})), "{id}: {answer:?}");
    let answer = daemon.get(&at("/items/%C3%A9?q=a%20b&q=c"));
    assert_eq!(answer.json(), json!({"item": "é", "q": ["a b", "c"]}), "{id}: {answer:?}");
    let content = json!({"name": "n", "price": 2});
    let answer = daemon.request(
        "POST",
        &at("/items"),
        &[("content-type", "application/json")],
        content.to_string().as_bytes(),
    );
    assert_eq!((answer.status, answer.json()), (201, json!({"name": "n", "double": 4})), "{id}: {answer:?}");
    let answer = daemon.get(&at("/cookies"));
    let cookies: Vec<&str> =
        answer.fields("set-cookie").map(|field| field.split(';').next().unwrap()).collect();
    assert_eq!(cookies, ["a=1", "b=2"], "{id}: {answer:?}");
    let answer = daemon.get(&at("/stream"));
    assert_eq!(answer.body, b"one two three", "{id}: {answer:?}");
    let bytes: Vec<u8> = (0..=255).collect();
    let answer = daemon.request("POST", &at("/echo"), &[("content-type", "application/x-test")], &bytes);
    assert_eq!(answer.body, bytes, "{id}");
    assert_eq!(daemon.get(&at("/nowhere")).status, 404, "{id}");
    let answer = daemon.get(&at("/fails"));
    assert_eq!(answer.status, 500, "{id}: {answer:?}");
    assert!(!String::from_utf8_lossy(&answer.body).contains("the reason"), "{id}: {answer:?}");
    assert_eq!(daemon.get(&at("/")).status, 200, "{id} lives on");
    assert_eq!(daemon.status(id).unwrap()["restarts"], 0, "{id}");
}

#[test]
fn fastapi_and_flask_are_plugins() {
    let Some(python) = python() else { return };
    let stage = patient_stage();
    python_plugin(&stage, &python, "asgi", "fast-api", FASTAPI);
    python_plugin(&stage, &python, "wsgi", "flask-app", FLASK);
    let daemon = stage.start();
    check(&daemon, "fast-api");
    check(&daemon, "flask-app");
    // FastAPI's own pages name its addresses by the root path that it is told.
    let page = daemon.get("/api/plugins/fast-api/docs");
    assert!(String::from_utf8_lossy(&page.body).contains("/api/plugins/fast-api/openapi.json"), "{page:?}");
    let answer = daemon.get("/api/plugins/fast-api/lifespan");
    assert_eq!(answer.json(), json!({"state": "started"}), "{answer:?}");
    let answer = daemon.get("/api/plugins/flask-app/url");
    assert_eq!(answer.json(), json!("/api/plugins/flask-app/items/1"), "{answer:?}");
    let answer = daemon.get("/api/plugins/fast-api/stored");
    assert_eq!(answer.json(), json!("stored"), "{answer:?}");
    let answer = daemon.get("/api/plugins/flask-app/stored");
    assert_eq!(answer.json(), json!("stored"), "{answer:?}");
}

#[test]
fn starlette_and_litestar_are_plugins() {
    let Some(python) = python() else { return };
    let stage = patient_stage();
    python_plugin(&stage, &python, "asgi", "star-lette", STARLETTE);
    python_plugin(&stage, &python, "asgi", "lite-star", LITESTAR);
    let daemon = stage.start();
    check(&daemon, "star-lette");
    check(&daemon, "lite-star");
    for id in ["star-lette", "lite-star"] {
        let answer = daemon.get(&format!("/api/plugins/{id}/lifespan"));
        assert_eq!(answer.json(), json!({"state": "started"}), "{id}: {answer:?}");
    }
    let answer = daemon.get("/api/plugins/star-lette/url");
    let url = answer.json().as_str().unwrap().to_owned();
    assert!(url.ends_with("/api/plugins/star-lette/items/1"), "{answer:?}");
    // Both are installed beside these frameworks, and taken without being asked for.
    let answer = daemon.get("/api/plugins/star-lette/faster");
    assert_eq!(answer.json(), json!({"loop": "uvloop", "json": "orjson"}), "{answer:?}");
}

#[test]
fn django_is_a_plugin_in_both_ways() {
    let Some(python) = python() else { return };
    let stage = patient_stage();
    fs::write(stage.plugins().join("site_urls.py"), DJANGO).unwrap();
    python_plugin(
        &stage,
        &python,
        "wsgi",
        "django-wsgi",
        &format!("{DJANGO_SETTINGS}app = get_wsgi_application()\n"),
    );
    python_plugin(
        &stage,
        &python,
        "asgi",
        "django-asgi",
        &format!("{DJANGO_SETTINGS}app = get_asgi_application()\n"),
    );
    let daemon = stage.start();
    for id in ["django-wsgi", "django-asgi"] {
        check(&daemon, id);
        let answer = daemon.get(&format!("/api/plugins/{id}/url"));
        assert_eq!(answer.json(), json!({"url": format!("/api/plugins/{id}/items/1")}), "{answer:?}");
    }
}

#[test]
fn hono_and_express_are_plugins() {
    let Some(folder) = node() else { return };
    let stage = patient_stage();
    for (id, application) in [("hono-app", HONO), ("express-app", EXPRESS)] {
        fs::write(folder.join(format!("{id}.js")), application).unwrap();
        let script = format!("#!/bin/sh\nexec node {}/{id}.js \"$@\"\n", folder.display());
        write_executable(&stage.plugins().join(format!("{id}.binary")), &script);
    }
    let daemon = stage.start();
    check(&daemon, "hono-app");
    check(&daemon, "express-app");
    let answer = daemon.get("/api/plugins/hono-app/stored");
    assert_eq!(answer.json(), json!("stored"), "{answer:?}");
    let answer = daemon.get("/api/plugins/express-app/static");
    assert_eq!(answer.json()["type"], "module", "{answer:?}");
}

#[test]
fn what_authors_write_in_typescript_fits_the_node_sdk() {
    let Some(folder) = node() else { return };
    fs::copy(repository().join("tests/frameworks/types.ts"), folder.join("types.ts")).unwrap();
    let compiler = folder.join("node_modules/.bin/tsc");
    // `Request` and `Response` are the browser's in one project and Node's in the next.
    for library in ["es2023", "es2023,dom,dom.iterable"] {
        let printed = long_output(
            Command::new(&compiler)
                .args(["--noEmit", "--strict", "--exactOptionalPropertyTypes", "--module", "nodenext"])
                .args(["--target", "es2023", "--types", "node", "--lib", library, "types.ts"])
                .current_dir(&folder),
        );
        assert!(printed.status.success(), "{library}: {}", String::from_utf8_lossy(&printed.stdout));
    }
}

#[test]
fn the_node_sdk_passes_its_own_tests() {
    if !has_program("node") {
        println!("skipped: no node here");
        return;
    }
    let package = repository().join("plugin-api/node");
    let mut tests: Vec<PathBuf> = fs::read_dir(package.join("test"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(".test.js"))
        .collect();
    tests.sort();
    assert!(!tests.is_empty());
    let printed = long_output(Command::new("node").arg("--test").args(tests).current_dir(&package));
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stdout));
}

const FASTAPI: &str = r#"
from contextlib import asynccontextmanager

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

@asynccontextmanager
async def lifespan(app):
    yield {"word": "started"}

app = FastAPI(lifespan=lifespan)

class Item(BaseModel):
    name: str
    price: int

@app.get("/")
async def index():
    return {"hello": "world"}

@app.get("/items/{item}")
def item(item: str, q: list[str] = Query()):
    return {"item": item, "q": q}

@app.post("/items", status_code=201)
async def make(item: Item):
    return {"name": item.name, "double": 2 * item.price}

@app.get("/cookies")
async def cookies(response: Response):
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")

@app.get("/stream")
async def stream():
    async def pieces():
        for piece in ("one ", "two ", "three"):
            yield piece
    return StreamingResponse(pieces())

@app.post("/echo")
async def echo(request: Request):
    return Response(await request.body(), media_type="application/x-test")

@app.get("/fails")
async def fails():
    raise ValueError("the reason")

@app.get("/lifespan")
async def state(request: Request):
    return {"state": request.state.word}

@app.get("/stored")
async def kv(request: Request):
    kv = request.scope["toru.context"].kv
    await kv.set("key", "stored")
    return await kv.get("key")
"#;

const FLASK: &str = r#"
from flask import Flask, Response, jsonify, make_response, request, url_for

app = Flask(__name__)

@app.get("/")
def index():
    return {"hello": "world"}

@app.get("/items/<item>")
def item(item):
    return {"item": item, "q": request.args.getlist("q")}

@app.post("/items")
def make():
    return {"name": request.json["name"], "double": 2 * request.json["price"]}, 201

@app.get("/cookies")
def cookies():
    response = make_response("")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response

@app.get("/stream")
def stream():
    return Response(piece for piece in ("one ", "two ", "three"))

@app.post("/echo")
def echo():
    return Response(request.get_data(), mimetype="application/x-test")

@app.get("/fails")
def fails():
    raise ValueError("the reason")

@app.get("/url")
def url():
    return jsonify(url_for("item", item="1"))

@app.get("/stored")
def kv():
    kv = request.environ["toru.context"].kv.blocking
    kv.set("key", "stored")
    return jsonify(kv.get("key"))
"#;

const STARLETTE: &str = r#"
import asyncio
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

@asynccontextmanager
async def lifespan(app):
    yield {"word": "started"}

async def index(request):
    return JSONResponse({"hello": "world"})

async def item(request):
    return JSONResponse({"item": request.path_params["item"], "q": request.query_params.getlist("q")})

async def make(request):
    content = await request.json()
    return JSONResponse({"name": content["name"], "double": 2 * content["price"]}, 201)

def cookies(request):
    response = Response()
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response

async def stream(request):
    async def pieces():
        for piece in ("one ", "two ", "three"):
            await asyncio.sleep(0.001)
            yield piece
    return StreamingResponse(pieces())

async def echo(request):
    return Response(await request.body(), media_type="application/x-test")

async def fails(request):
    raise ValueError("the reason")

async def state(request):
    return JSONResponse({"state": request.state.word})

async def url(request):
    return JSONResponse(str(request.url_for("item", item="1")))

async def faster(request):
    from toru_plugin import messages
    loop = type(asyncio.get_running_loop()).__module__.split(".")[0]
    return JSONResponse({"loop": loop, "json": messages._orjson.__name__})

# This middleware runs the application in a task group, and is the hardest on whoever serves it.
class Passes(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        return await call_next(request)

app = Starlette(
    routes=[
        Route("/", index),
        Route("/items/{item}", item, name="item"),
        Route("/items", make, methods=["POST"]),
        Route("/cookies", cookies),
        Route("/stream", stream),
        Route("/echo", echo, methods=["POST"]),
        Route("/fails", fails),
        Route("/lifespan", state),
        Route("/url", url),
        Route("/faster", faster),
    ],
    middleware=[Middleware(Passes)],
    lifespan=lifespan,
)
"#;

const LITESTAR: &str = r#"
from contextlib import asynccontextmanager
from dataclasses import dataclass

from litestar import Litestar, Request, Response, get, post
from litestar.params import Parameter
from litestar.response import Stream

@asynccontextmanager
async def lifespan(app):
    app.state.word = "started"
    yield

@dataclass
class Item:
    name: str
    price: int

@get("/")
async def index() -> dict[str, str]:
    return {"hello": "world"}

@get("/items/{item:str}", sync_to_thread=True)
def item(item: str, q: list[str]) -> dict[str, object]:
    return {"item": item, "q": q}

@post("/items")
async def make(data: Item) -> dict[str, object]:
    return {"name": data.name, "double": 2 * data.price}

@get("/cookies")
async def cookies() -> Response[None]:
    response = Response(None)
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response

@get("/stream")
async def stream() -> Stream:
    async def pieces():
        for piece in ("one ", "two ", "three"):
            yield piece
    return Stream(pieces())

@post("/echo", status_code=200)
async def echo(request: Request) -> Response[bytes]:
    return Response(await request.body(), media_type="application/x-test")

@get("/fails")
async def fails() -> None:
    raise ValueError("the reason")

@get("/lifespan")
async def state(request: Request) -> dict[str, str]:
    return {"state": request.app.state.word}

app = Litestar([index, item, make, cookies, stream, echo, fails, state], lifespan=[lifespan])
"#;

const DJANGO_SETTINGS: &str = r#"
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF="site_urls", SECRET_KEY="a test's", DEFAULT_CHARSET="utf-8")
"#;

const DJANGO: &str = r#"
import json

from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path, reverse

def index(request):
    return JsonResponse({"hello": "world"})

async def item(request, item):
    return JsonResponse({"item": item, "q": request.GET.getlist("q")})

def make(request):
    content = json.loads(request.body)
    return JsonResponse({"name": content["name"], "double": 2 * content["price"]}, status=201)

def cookies(request):
    response = HttpResponse()
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response

def stream(request):
    return StreamingHttpResponse(piece for piece in ("one ", "two ", "three"))

async def echo(request):
    return HttpResponse(request.body, content_type="application/x-test")

def fails(request):
    raise ValueError("the reason")

def url(request):
    return JsonResponse({"url": reverse("item", args=["1"])})

urlpatterns = [
    path("", index),
    path("items/<str:item>", item, name="item"),
    path("items", make),
    path("cookies", cookies),
    path("stream", stream),
    path("echo", echo),
    path("fails", fails),
    path("url", url),
]
"#;

const HONO: &str = r#"
import { Hono } from "hono";
import { stream } from "hono/streaming";
import { serve } from "toru-plugin";

const app = new Hono();
app.get("/", (c) => c.json({ hello: "world" }));
app.get("/items/:item", (c) => c.json({ item: c.req.param("item"), q: c.req.queries("q") }));
app.post("/items", async (c) => {
  const { name, price } = await c.req.json();
  return c.json({ name, double: 2 * price }, 201);
});
app.get("/cookies", (c) => {
  c.header("set-cookie", "a=1", { append: true });
  c.header("set-cookie", "b=2", { append: true });
  return c.body(null);
});
app.get("/stream", (c) => stream(c, async (s) => {
  for (const piece of ["one ", "two ", "three"]) await s.write(piece);
}));
app.post("/echo", async (c) => c.body(await c.req.arrayBuffer(), 200, { "content-type": "application/x-test" }));
app.get("/fails", () => { throw new Error("the reason"); });
app.get("/stored", async (c) => {
  await c.env.kv.set("key", "stored");
  return c.json(await c.env.kv.get("key"));
});

serve({ id: "hono-app", name: "Hono", version: "1.0.0", fetch: app.fetch });
"#;

const EXPRESS: &str = r#"
import express from "express";
import { serve } from "toru-plugin";
import { fromListener } from "toru-plugin/node-http";

const app = express();
app.get("/", (req, res) => res.json({ hello: "world" }));
app.get("/items/:item", (req, res) => res.json({ item: req.params.item, q: req.query.q }));
app.post("/items", express.json(), (req, res) => {
  res.status(201).json({ name: req.body.name, double: 2 * req.body.price });
});
app.get("/cookies", (req, res) => res.cookie("a", "1").cookie("b", "2").end());
app.get("/stream", (req, res) => {
  for (const piece of ["one ", "two "]) res.write(piece);
  res.end("three");
});
app.post("/echo", express.raw({ type: "*/*" }), (req, res) => res.type("application/x-test").send(req.body));
app.get("/fails", () => { throw new Error("the reason"); });
app.get("/static", (req, res) => res.sendFile("package.json", { root: import.meta.dirname }));
app.use((error, req, res, next) => res.status(500).send("failed"));

serve({ id: "express-app", name: "Express", version: "1.0.0", fetch: fromListener(app) });
"#;
