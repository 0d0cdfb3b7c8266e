//! A running controller and the means to talk to it.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use controller::cli::connect::ClientFile;
use controller::tls::pinned_client;
use key_pin::WrongKey;
use reqwest::{Client, Method, Response, Url};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The program under test.
const IMPRINT: &str = env!("CARGO_BIN_EXE_imprint");
/// Longest wait for something that takes milliseconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(30);
/// The MAC address of `node7`, as [`Served::add_node7`] enters it.
pub const MAC: &str = "52:54:00:77:00:01";

/// Waits until `probe` gives something.
pub async fn wait<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A controller in a folder of its own. Killed when dropped.
pub struct Served {
    folder: TempDir,
    args: Vec<String>,
    environment: Vec<(String, PathBuf)>,
    child: Option<Child>,
    http: Client,
    pub boot_url: String,
    pub api_url: String,
    pub token: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Served {
    /// Starts a controller with boot files and without DHCP.
    pub async fn start() -> Self {
        Self::start_with(&["--store-url", "nfs://10.0.0.5/images"]).await
    }

    pub async fn start_with(args: &[&str]) -> Self {
        Self::start_in(args, &[]).await
    }

    /// The same with variables in its environment.
    pub async fn start_in(args: &[&str], environment: &[(&str, &Path)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("boot")).unwrap();
        fs::write(folder.path().join("boot/kernel"), "the kernel").unwrap();
        fs::write(folder.path().join("boot/initrd"), "the initramfs").unwrap();
        let mut served = Self {
            folder,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            environment: environment
                .iter()
                .map(|(name, path)| ((*name).to_owned(), (*path).to_owned()))
                .collect(),
            child: None,
            // Trusts nobody until the controller's pin is known.
            http: trusting(&"0".repeat(64)),
            boot_url: String::new(),
            api_url: String::new(),
            token: String::new(),
        };
        served.restart().await;
        served
    }

    /// Starts it again on the same folder, on other ports.
    pub async fn restart(&mut self) {
        self.restart_at("0").await;
    }

    /// The same where agents find it again.
    pub async fn restart_at_its_port(&mut self) {
        let port = self.api_url.rsplit_once(':').unwrap().1.to_owned();
        self.restart_at(&port).await;
    }

    async fn restart_at(&mut self, https_port: &str) {
        self.kill();
        let log = File::create(self.log()).unwrap();
        let child = Command::new(IMPRINT)
            .args([
                "serve",
                "--address",
                "127.0.0.1",
                "--http-port",
                "0",
                "--https-port",
                https_port,
            ])
            .args(["--no-dhcp", "--kernel-args", "console=ttyS0"])
            .arg("--data")
            .arg(self.data())
            .arg("--boot-dir")
            .arg(self.path("boot"))
            .args(&self.args)
            .env("IMPRINT_LOG", "trace")
            .envs(self.environment.iter().map(|(name, path)| (name, path)))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let log = self.log();
        self.boot_url = wait("imprint serve says where it serves", async || {
            let text = fs::read_to_string(&log).unwrap();
            let line = text.lines().find(|line| line.contains(" serving boot="))?;
            line.split('"').nth(1).map(str::to_owned)
        })
        .await;
        let file: ClientFile =
            serde_json::from_slice(&fs::read(self.data().join("client.json")).unwrap()).unwrap();
        self.http = trusting(&file.pin);
        (self.api_url, self.token) = (file.url, file.token);
    }

    /// What `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// What `systemctl stop` does.
    pub async fn end(&mut self) {
        let mut child = self.child.take().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)
            .unwrap();
        let status = wait("imprint serve ends", async || child.try_wait().unwrap()).await;
        assert!(status.success(), "{status}");
    }

    /// A path in the controller's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    fn log(&self) -> PathBuf {
        self.path("log")
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap()
    }

    /// A client that trusts this controller only.
    pub fn client(&self) -> &Client {
        &self.http
    }

    /// Asks with a bearer token; an empty one sends none.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: Option<&Value>,
    ) -> Response {
        let mut request = self.http.request(method, format!("{}{path}", self.api_url));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.unwrap()
    }

    /// Asks as the administrator; status and JSON of the answer.
    pub async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> (u16, Value) {
        answer(self.send(method, path, &self.token, body).await).await
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, value) = self.ask(Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask(Method::POST, path, Some(&body)).await
    }

    /// Enters `node7`, which has no BMC.
    pub async fn add_node7(&self) {
        let (status, value) = self.post("/v1/hosts", json!({"name": "node7", "macs": [MAC]})).await;
        assert_eq!(status, 201, "{value}");
    }

    /// Starts a capture of `node7`; its number.
    pub async fn capture(&self, image: &str) -> i64 {
        let wish = json!({"action": "capture", "host": "node7", "image": image});
        let (status, value) = self.post("/v1/jobs", wish).await;
        assert_eq!(status, 202, "{value}");
        value["id"].as_i64().unwrap()
    }

    pub async fn state(&self, job: i64) -> String {
        self.get(&format!("/v1/jobs/{job}")).await["state"].as_str().unwrap().to_owned()
    }

    pub async fn wait_state(&self, job: i64, state: &str) {
        wait(&format!("job {job} is {state}"), async || {
            (self.state(job).await == state).then_some(())
        })
        .await;
    }

    /// A boot file, as firmware would fetch it.
    pub async fn boot_file(&self, path: &str) -> Response {
        self.http.get(format!("{}{path}", self.boot_url)).send().await.unwrap()
    }

    /// The boot script of a MAC address.
    pub async fn script(&self, mac: &str) -> String {
        let query = [("mac", mac), ("uuid", "4c4c4544-0000-2010-8020-80c04f202020")];
        let url = Url::parse_with_params(&format!("{}/boot/ipxe", self.boot_url), query).unwrap();
        self.http.get(url).send().await.unwrap().text().await.unwrap()
    }

    fn imprint_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(IMPRINT);
        command
            .args(args)
            .env("IMPRINT_CONFIG", self.data().join("client.json"))
            .env_remove("IMPRINT_BMC_PASSWORD")
            .stdin(Stdio::null());
        command
    }

    /// Runs `imprint` against this controller.
    pub fn imprint(&self, args: &[&str]) -> Output {
        self.imprint_command(args).output().unwrap()
    }

    /// The same while other things go on. Killed when it takes too long.
    pub async fn imprint_beside(&self, args: &[&str]) -> Output {
        let mut command = tokio::process::Command::from(self.imprint_command(args));
        let ended = tokio::time::timeout(LIMIT, command.kill_on_drop(true).output()).await;
        ended.unwrap_or_else(|_| panic!("imprint {args:?} does not end")).unwrap()
    }
}

/// A client that trusts the controller with this pin only.
fn trusting(pin: &str) -> Client {
    Client::builder()
        .tls_backend_preconfigured(pinned_client(pin, &WrongKey::default()).unwrap())
        .no_proxy()
        .timeout(LIMIT)
        .build()
        .unwrap()
}

/// Status and JSON of an answer; null if it is not JSON.
pub async fn answer(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

/// Writes a program.
pub fn write_program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
