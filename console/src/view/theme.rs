//! Colours and signs. Sixteen colours, which every terminal has and its owner has chosen.

use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier, Style};

use crate::model::Condition;
use crate::text::to_ascii;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Theme {
    #[default]
    Dark,
    Light,
    /// No colour at all: bold, underlined, reversed.
    Mono,
}

/// How everything looks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    pub theme: Theme,
    pub ascii: bool,
}

/// What a piece of text is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Plain,
    Title,
    Dim,
    Key,
    Good,
    Busy,
    Warn,
    Bad,
    /// Nothing else on the screen may be as loud.
    Alarm,
    Selected,
    /// Of three layered series, from the front.
    Series(u8),
}

impl Look {
    pub fn style(self, role: Role) -> Style {
        let plain = Style::new();
        if self.theme == Theme::Mono {
            return match role {
                Role::Plain | Role::Good | Role::Busy | Role::Series(_) => plain,
                Role::Title | Role::Key | Role::Warn => plain.add_modifier(Modifier::BOLD),
                Role::Dim => plain.add_modifier(Modifier::DIM),
                Role::Bad => plain.add_modifier(Modifier::BOLD | Modifier::UNDERLINED),
                Role::Alarm => plain.add_modifier(Modifier::BOLD | Modifier::REVERSED),
                Role::Selected => plain.add_modifier(Modifier::REVERSED),
            };
        }
        let light = self.theme == Theme::Light;
        // Yellow and the bright colours cannot be read on white, blue not on black.
        let pick = |dark, bright| if light { bright } else { dark };
        match role {
            Role::Plain => plain,
            Role::Title => plain.add_modifier(Modifier::BOLD),
            Role::Dim => plain.fg(pick(Color::DarkGray, Color::DarkGray)),
            Role::Key => plain.fg(pick(Color::Cyan, Color::Blue)),
            Role::Good => plain.fg(Color::Green),
            Role::Busy => plain.fg(pick(Color::Cyan, Color::Blue)),
            Role::Warn => plain.fg(pick(Color::Yellow, Color::Magenta)),
            Role::Bad => plain.fg(pick(Color::LightRed, Color::Red)).add_modifier(Modifier::BOLD),
            // Reversed, the letters have the colour of the paper: some light palettes make white a grey.
            Role::Alarm if light => plain.fg(Color::Red).add_modifier(Modifier::BOLD | Modifier::REVERSED),
            Role::Alarm => plain.fg(Color::White).bg(Color::Red).add_modifier(Modifier::BOLD),
            Role::Selected => plain.add_modifier(Modifier::REVERSED),
            Role::Series(0) => plain.fg(pick(Color::Cyan, Color::Blue)),
            Role::Series(1) => plain.fg(pick(Color::Yellow, Color::Magenta)),
            Role::Series(_) => plain.fg(pick(Color::LightRed, Color::Red)),
        }
    }

    pub fn condition(self, condition: Condition) -> Style {
        self.style(match condition {
            Condition::Disabled | Condition::Stopped => Role::Dim,
            Condition::Running => Role::Good,
            Condition::Stopping => Role::Warn,
            Condition::Starting => Role::Busy,
            Condition::Deferred | Condition::Crashed => Role::Bad,
            Condition::Hung | Condition::CrashLoop | Condition::Failed => Role::Alarm,
        })
    }

    /// Laid over a picture that is no longer the present.
    pub fn stale(self) -> Style {
        let flat = Style::new().remove_modifier(Modifier::BOLD | Modifier::UNDERLINED | Modifier::REVERSED);
        match self.theme {
            Theme::Mono => flat.add_modifier(Modifier::DIM),
            _ => flat.fg(Color::DarkGray).bg(Color::Reset),
        }
    }
}

pub fn sign(condition: Condition) -> &'static str {
    match condition {
        Condition::Disabled => "–",
        Condition::Stopped => "○",
        Condition::Running => "●",
        Condition::Stopping => "◌",
        Condition::Starting => "◐",
        Condition::Deferred => "◌",
        Condition::Crashed => "✖",
        Condition::Hung => "▲",
        Condition::CrashLoop => "▲",
        Condition::Failed => "✖",
    }
}

/// Replaces every sign that is not ASCII by its likeness.
pub fn to_ascii_cells(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        let likeness = match cell.symbol() {
            symbol if symbol.is_ascii() => continue,
            "▁" => "_",
            "▂" | "░" => ".",
            "▃" => "-",
            "▄" | "▒" => "=",
            "▅" => "+",
            "▆" => "*",
            "▇" | "▓" => "%",
            "█" => "#",
            "│" => "|",
            "─" | "┄" => "-",
            "┌" | "┐" | "└" | "┘" | "├" | "┤" | "┼" => "+",
            "●" => "*",
            "○" | "◌" => "o",
            "◐" => "~",
            "✖" => "X",
            "▲" => "^",
            "▼" => "v",
            _ => {
                let symbol = to_ascii(cell.symbol());
                // A cell of several code points stays one cell.
                cell.set_symbol(symbol.get(..1).unwrap_or("?"));
                continue;
            }
        };
        cell.set_symbol(likeness);
    }
}
