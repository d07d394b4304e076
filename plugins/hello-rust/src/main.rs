use toru_plugin_api::*;

struct Hello;

#[async_trait]
impl ToruPlugin for Hello {
    fn metadata(&self) -> PluginMetadata {
        PluginMetadata::new("hello-rust", "Hello from Rust", env!("CARGO_PKG_VERSION")).icon("🦀")
    }

    async fn handle_http(&self, r: HttpRequest, ctx: &PluginContext) -> PluginResult<HttpResponse> {
        let visits = count_visit(&ctx.kv).await.ok(); // null where the core stores nothing
        let name = r.query_value("name").unwrap_or("world".into());
        let message = format!("Hello, {name}!");
        Ok(HttpResponse::json(&serde_json::json!({ "message": message, "visits": visits })))
    }
}

// Two visits at the same time may count as one: it is an example of storing, not of counting.
async fn count_visit(kv: &Kv) -> Result<u64, KvError> {
    let visits = kv.get_json("visits").await?.unwrap_or(0) + 1;
    kv.set_json("visits", &visits).await.map(|()| visits)
}

fn main() -> std::process::ExitCode {
    run(Hello)
}
