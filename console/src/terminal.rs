//! The terminal: into raw mode and out of it whatever happens, keys in, frames out.

use std::cell::RefCell;
use std::io::{self, Stdout, Write};
use std::rc::Rc;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::event::{
    DisableMouseCapture, EnableMouseCapture, Event, KeyCode, KeyEventKind, KeyModifiers, MouseButton,
    MouseEventKind,
};
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode, size,
};
use ratatui::crossterm::{execute, queue};
use ratatui::layout::Rect;
use ratatui::{Frame, Terminal};
use rustix::process::{Pid, Signal, getpgid, getppid, getsid};
use signal_hook::consts::SIGQUIT;

use crate::update::{Key, Msg};

/// Whether the terminal is in our mode.
static OURS: AtomicBool = AtomicBool::new(false);

/// Synchronized updates (DEC private mode 2026): the terminal shows a picture when it is whole.
/// One that does not know the mode ignores it.
const BEGIN: &[u8] = b"\x1b[?2026h";
const END: &[u8] = b"\x1b[?2026l";

/// Bytes of a frame, gathered so that they go out in one write, or not at all.
#[derive(Clone, Default)]
struct Gathered(Rc<RefCell<Vec<u8>>>);

impl Write for Gathered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The terminal while it is ours. Dropping it gives it back.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Gathered>>,
    gathered: Gathered,
    stdout: Stdout,
    mouse: bool,
    /// When it last went on after [`Self::suspend`].
    went_on: Option<Instant>,
}

impl Screen {
    pub fn enter(mouse: bool) -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                // The message would else be drawn over by the alternate screen's end.
                let _ = restore();
                before(panic);
                if std::thread::current().name() != Some("main") {
                    // The screen would go on without what that thread did, and on a terminal that is no longer ours.
                    std::process::exit(101);
                }
            }));
        });
        let gathered = Gathered::default();
        let terminal = Terminal::new(CrosstermBackend::new(gathered.clone()))?;
        let mut screen = Self { terminal, gathered, stdout: io::stdout(), mouse, went_on: None };
        screen.take()?;
        Ok(screen)
    }

    fn take(&mut self) -> io::Result<()> {
        OURS.store(true, Relaxed);
        enable_raw_mode()?;
        execute!(self.stdout, EnterAlternateScreen, Hide)?;
        if self.mouse {
            execute!(self.stdout, EnableMouseCapture)?;
        }
        self.repaint()
    }

    /// Columns and rows.
    pub fn size(&self) -> io::Result<(u16, u16)> {
        size()
    }

    /// The next frame is drawn in full.
    pub fn repaint(&mut self) -> io::Result<()> {
        // Not `Terminal::clear`: it asks the terminal for its cursor, and the thread that reads keys would get the answer.
        let (width, height) = size()?;
        self.terminal.resize(Rect { x: 0, y: 0, width, height })
    }

    pub fn draw(&mut self, view: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(view)?;
        let bytes = self.gathered.0.take();
        if !moves_cursor(&bytes) {
            // No cell has changed; what is left hides the cursor again and resets colours.
            return Ok(());
        }
        let mut frame = Vec::with_capacity(bytes.len() + BEGIN.len() + END.len());
        frame.extend_from_slice(BEGIN);
        push_sixteen(&mut frame, &bytes);
        frame.extend_from_slice(END);
        self.stdout.write_all(&frame)?;
        self.stdout.flush()
    }

    /// Gives the terminal back, stops as Ctrl-Z stops others, and goes on when continued.
    ///
    /// The signal goes to the whole process group, as the terminal would send it, so that a script around the console
    /// stops with it.
    pub fn suspend(&mut self) -> io::Result<()> {
        if may_stop() {
            restore()?;
            rustix::process::kill_current_process_group(Signal::TSTP)?;
            self.wait_stopped()?;
            self.went_on = Some(Instant::now());
        }
        Ok(())
    }

    /// The same after a SIGTSTP, whoever sent it.
    pub fn stop(&mut self) -> io::Result<()> {
        /// So soon after the console suspended itself the signal is its own, which was caught, too.
        const OWN: Duration = Duration::from_millis(500);
        if may_stop() && self.went_on.is_none_or(|at| at.elapsed() > OWN) {
            restore()?;
            self.wait_stopped()?;
        }
        Ok(())
    }

    /// SIGTSTP is caught and stops nothing by itself, so another signal does it.
    fn wait_stopped(&mut self) -> io::Result<()> {
        /// It may be taken by another thread: this one must not touch the terminal before all have stopped.
        const TO_STOP: Duration = Duration::from_millis(50);
        rustix::process::kill_process(rustix::process::getpid(), Signal::STOP)?;
        std::thread::sleep(TO_STOP);
        self.take()
    }

    /// Gives the terminal back for good, for an end that drops nothing.
    pub fn leave(&mut self) -> io::Result<()> {
        restore()
    }

    /// Takes the terminal anew after the process was stopped, by whomever.
    pub fn resume(&mut self) -> io::Result<()> {
        // The shell has set its own mode meanwhile, and raw mode is not entered twice.
        disable_raw_mode()?;
        self.take()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The terminal may be gone, and nobody is left to tell.
        let _ = restore();
    }
}

/// Whether a frame has a cell in it: each change begins with a move of the cursor.
fn moves_cursor(bytes: &[u8]) -> bool {
    bytes.windows(2).enumerate().any(|(at, window)| {
        window == b"\x1b["
            && bytes[at + 2..]
                .iter()
                .find(|byte| byte.is_ascii_alphabetic())
                .is_some_and(|last| *last == b'H')
    })
}

/// Appends a frame with its colours as every terminal knows them, `31` and `91`: the library writes `38;5;1` and
/// `38;5;9`, which are of the 256 and longer. What is no colour of the sixteen stays as it is.
fn push_sixteen(out: &mut Vec<u8>, frame: &[u8]) {
    let mut rest = frame;
    while let Some(at) = rest.windows(2).position(|window| window == b"\x1b[") {
        let (before, sequence) = rest.split_at(at + 2);
        out.extend_from_slice(before);
        let end = sequence.iter().position(|byte| !matches!(byte, b'0'..=b';')).unwrap_or(sequence.len());
        let (parameters, after) = sequence.split_at(end);
        match std::str::from_utf8(parameters) {
            Ok(parameters) if after.first() == Some(&b'm') => {
                out.extend_from_slice(sixteen(parameters).as_bytes());
            }
            _ => out.extend_from_slice(parameters),
        }
        rest = after;
    }
    out.extend_from_slice(rest);
}

fn sixteen(parameters: &str) -> String {
    let mut parts = parameters.split(';');
    let mut out: Vec<String> = Vec::new();
    while let Some(part) = parts.next() {
        let mut ahead = parts.clone();
        let number = match (part, ahead.next(), ahead.next()) {
            ("38" | "48", Some("5"), Some(number)) => number.parse::<u8>().ok().filter(|number| *number < 16),
            _ => None,
        };
        let Some(number) = number else {
            out.push(part.to_owned());
            continue;
        };
        parts = ahead;
        let first = match (part, number) {
            ("38", ..8) => 30,
            ("38", _) => 90 - 8,
            (_, ..8) => 40,
            (_, _) => 100 - 8,
        };
        out.push((first + number).to_string());
    }
    out.join(";")
}

/// Everything that [`Screen::enter`] changed, undone; nothing when that is done already,
/// since a second end of the alternate screen moves the cursor back over what was printed since.
fn restore() -> io::Result<()> {
    if !OURS.swap(false, Relaxed) {
        return Ok(());
    }
    let mut stdout = io::stdout();
    queue!(stdout, DisableMouseCapture, LeaveAlternateScreen, Show)?;
    stdout.write_all(END)?;
    stdout.flush()?;
    disable_raw_mode()
}

/// Whether a shell could continue this process once it has stopped: as the kernel sees it, whether anybody above its
/// process group is in the same session. Else it would be stopped for ever, and the kernel ignores SIGTSTP there.
fn may_stop() -> bool {
    let (Ok(group), Ok(session)) = (getpgid(None), getsid(None)) else { return false };
    let mut above = getppid();
    while let Some(parent) = above {
        if getsid(Some(parent)) != Ok(session) {
            return false;
        }
        if getpgid(Some(parent)) != Ok(group) {
            return true;
        }
        above = parent_of(parent);
    }
    false
}

fn parent_of(process: Pid) -> Option<Pid> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_pid())).ok()?;
    // After the name, which may hold anything: state, parent.
    let (_, fields) = stat.rsplit_once(')')?;
    Pid::from_raw(fields.split_whitespace().nth(1)?.parse().ok()?)
}

/// Whether whoever started this process wants it never to be stopped from a terminal.
pub fn ignores_stops() -> bool {
    /// SIGTSTP, the lowest bit being signal 1.
    const STOPS: u64 = 1 << 19;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & STOPS != 0)
}

/// Ends the process though the terminal takes nothing: what can be undone without writing is undone.
pub fn abandon(signal: i32) -> ! {
    let _ = disable_raw_mode();
    if signal == SIGQUIT {
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    }
    std::process::exit(1)
}

/// What the terminal said as what the model understands; `None` for what means nothing here.
pub fn translate(event: Event) -> Option<Msg> {
    let key = match event {
        Event::Resize(columns, rows) => return Some(Msg::Resize(columns, rows)),
        Event::Mouse(mouse) => {
            return match mouse.kind {
                MouseEventKind::ScrollDown => Some(Msg::Wheel { down: true }),
                MouseEventKind::ScrollUp => Some(Msg::Wheel { down: false }),
                MouseEventKind::Down(MouseButton::Left) => {
                    Some(Msg::Click { column: mouse.column, row: mouse.row })
                }
                _ => None,
            };
        }
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        _ => return None,
    };
    // No key here has Alt; with it, x shall not stop a plugin.
    if key.modifiers.intersects(KeyModifiers::ALT | KeyModifiers::META | KeyModifiers::SUPER) {
        return None;
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    Some(Msg::Key(match key.code {
        KeyCode::Char(letter) if control => Key::Ctrl(letter.to_ascii_lowercase()),
        KeyCode::Char(letter) => Key::Char(letter),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Esc,
        KeyCode::Tab => Key::Tab,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Delete => Key::Delete,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Left => Key::Left,
        KeyCode::Right => Key::Right,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::crossterm::event::KeyEvent;

    #[test]
    fn a_frame_without_cells_is_told_from_one_with() {
        assert!(!moves_cursor(b""));
        assert!(!moves_cursor(b"\x1b[39m\x1b[49m\x1b[0m\x1b[?25l"));
        assert!(moves_cursor(b"\x1b[?25l\x1b[3;7Hx\x1b[0m"));
    }

    #[test]
    fn a_letter_with_alt_is_no_key() {
        let pressed = |modifiers| translate(Event::Key(KeyEvent::new(KeyCode::Char('x'), modifiers)));
        assert!(matches!(pressed(KeyModifiers::NONE), Some(Msg::Key(Key::Char('x')))));
        assert!(matches!(pressed(KeyModifiers::CONTROL), Some(Msg::Key(Key::Ctrl('x')))));
        assert!(pressed(KeyModifiers::ALT).is_none());
        assert!(pressed(KeyModifiers::ALT | KeyModifiers::CONTROL).is_none());
    }

    #[test]
    fn colours_are_sent_as_every_terminal_knows_them() {
        for (frame, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("\x1b[38;5;1mx\x1b[48;5;12m", "\x1b[31mx\x1b[104m"),
            ("\x1b[38;5;15;48;5;0mx\x1b[39;49m", "\x1b[97;40mx\x1b[39;49m"),
            ("\x1b[1m\x1b[3;7Hü\x1b[0m", "\x1b[1m\x1b[3;7Hü\x1b[0m"),
            ("\x1b[38;5;200m\x1b[38;2;1;2;3m", "\x1b[38;5;200m\x1b[38;2;1;2;3m"),
            ("\x1b[m\x1b[38;5", "\x1b[m\x1b[38;5"),
            ("\x1b[5;38H\x1b[?25l", "\x1b[5;38H\x1b[?25l"),
        ] {
            let mut out = Vec::new();
            push_sixteen(&mut out, frame.as_bytes());
            assert_eq!(String::from_utf8_lossy(&out), expected);
        }
    }

    /// Runs itself once more, in a terminal of tmux, to panic there with the screen taken.
    #[test]
    fn a_panic_gives_the_terminal_back() {
        use std::process::Command;

        const INSIDE: &str = "TORU_TEST_PANIC";
        if std::env::var_os(INSIDE).is_some() {
            let mut screen = Screen::enter(true).expect("a terminal");
            screen
                .draw(|frame| frame.buffer_mut().set_string(0, 0, "taken", ratatui::style::Style::new()))
                .expect("drawn");
            panic!("the words of the panic");
        }
        if Command::new("tmux").arg("-V").output().is_err() {
            println!("skipped: no tmux here");
            return;
        }
        let folder = tempfile::Builder::new().prefix("tm").tempdir_in("/tmp").expect("/tmp can be written");
        let tmux = |words: &[&str]| {
            let mut command = Command::new("tmux");
            command.env_remove("TMUX").env("LC_ALL", "C.UTF-8");
            let output = command.args(["-u", "-S"]).arg(folder.path().join("server")).args(words).output();
            String::from_utf8_lossy(&output.expect("tmux runs").stdout).into_owned()
        };
        let line = format!(
            "{INSIDE}=1 {} --exact terminal::tests::a_panic_gives_the_terminal_back --nocapture; stty -a | \
             tr ' ' '\\n' | grep -x -e icanon -e echo -e isig | sort | tr '\\n' +; exec cat",
            std::env::current_exe().expect("/proc is mounted").display(),
        );
        tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", &line]);
        let begun = Instant::now();
        let seen = loop {
            let seen = tmux(&["capture-pane", "-p"]);
            if seen.contains("echo+icanon+isig+") || begun.elapsed() > Duration::from_secs(30) {
                break seen;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let flags = tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag} #{mouse_any_flag}"]);
        tmux(&["kill-server"]);
        assert!(seen.contains("echo+icanon+isig+"), "{seen}");
        assert!(seen.contains("the words of the panic") && !seen.contains("taken"), "{seen}");
        assert_eq!(flags.trim(), "0 1 0", "screen, cursor, mouse");
    }

    #[test]
    fn keys_are_translated() {
        let translated = |code, modifiers| match translate(Event::Key(KeyEvent::new(code, modifiers))) {
            Some(Msg::Key(key)) => Some(key),
            _ => None,
        };
        assert_eq!(translated(KeyCode::Char('Z'), KeyModifiers::CONTROL), Some(Key::Ctrl('z')));
        assert_eq!(translated(KeyCode::Char('G'), KeyModifiers::SHIFT), Some(Key::Char('G')));
        assert_eq!(translated(KeyCode::F(1), KeyModifiers::NONE), None);
    }
}
