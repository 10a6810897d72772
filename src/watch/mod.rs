//! Live view of a run in the terminal, from its metrics file or a copy of it.
//!
//! - [`tail`]: lines appended to a file
//! - `state`: state of the run, built from these lines
//! - [`view`]: drawing of the state

mod state;
pub mod tail;
pub mod view;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers, poll, read};
use serde_json::Value;

use crate::files::input;
use crate::report::run::log::METRICS_FILE;
use crate::train::manifest;
use crate::{Error, Result};
use state::RunState;
use tail::Tail;
use view::{PANELS, ViewState, draw};

/// A run being watched.
pub struct Watched {
    name: String,
    tail: Tail,
    manifest: Option<PathBuf>,
    /// State of the run.
    pub state: RunState,
}

impl Watched {
    /// Opens a run's folder, or its metrics.jsonl. [`Error::Usage`] for a path that is neither.
    pub fn new(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let (log, manifest) = if path.is_dir() {
            (path.join(METRICS_FILE), Some(path.join(manifest::FILE)))
        } else if path.is_file() || path.extension().is_some_and(|e| e == "jsonl") {
            (path.to_owned(), path.parent().map(|folder| folder.join(manifest::FILE)))
        } else {
            return Err(Error::Usage(format!("{name} is neither a run's output folder nor its {METRICS_FILE}")));
        };
        Ok(Self { name, tail: Tail::new(&log), manifest, state: RunState::default() })
    }

    /// Reads the new rows and the manifest.
    pub fn poll(&mut self) -> Result<()> {
        let news = self.tail.poll()?;
        if news.restarted {
            self.state = RunState::default();
        }
        // A manifest that is just being written is read next time.
        let text = self.manifest.as_ref().and_then(|path| input::read(path, input::MAX_CONFIG).ok());
        if let Some(run) = text.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()) {
            self.state.manifest(&run);
        }
        news.rows.into_iter().for_each(|row| self.state.add(row));
        Ok(())
    }

    /// Draws one frame as text of the given size.
    pub fn render(&self, choice: ViewState, width: u16, height: u16) -> Result<String> {
        let failed = |e: std::convert::Infallible| Error::Runtime(e.to_string());
        let mut terminal = Terminal::new(TestBackend::new(width, height)).map_err(failed)?;
        terminal.draw(|frame| draw(frame, &self.name, &self.state, choice)).map_err(failed)?;
        let buffer = terminal.backend().buffer();
        let line = |y: u16| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        Ok((0..height).map(line).collect::<Vec<_>>().join("\n"))
    }

    /// Draws until a key ends the view.
    pub(crate) fn live(&mut self, interval: Duration) -> Result<()> {
        if !std::io::stdout().is_terminal() {
            return Err(Error::Usage("the live view needs a terminal; use --once to print one frame as text".into()));
        }
        let failed = |e: std::io::Error| Error::Runtime(format!("cannot draw on the terminal: {e}"));
        // Restores the terminal even if the program panics.
        let mut terminal = ratatui::try_init().map_err(failed)?;
        let mut choice = ViewState::default();
        let ended = loop {
            let drawn = self.poll().and_then(|()| {
                terminal.draw(|frame| draw(frame, &self.name, &self.state, choice)).map(|_| ()).map_err(failed)
            });
            if let Err(why) = drawn {
                break Err(why);
            }
            let event = match poll(interval) {
                Ok(true) => read(),
                Ok(false) => continue,
                Err(e) => break Err(failed(e)),
            };
            match event {
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => {
                    if !handle_key(&mut choice, key.code, key.modifiers, self.state.step) {
                        break Ok(());
                    }
                }
                Ok(_) => {}
                Err(e) => break Err(failed(e)),
            }
        };
        ratatui::restore();
        ended
    }
}

/// Applies a key; returns false if it ends the view.
pub fn handle_key(choice: &mut ViewState, key: KeyCode, modifiers: KeyModifiers, step: u64) -> bool {
    let pages = PANELS.len();
    match key {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Left => choice.panel = (choice.panel + pages - 1) % pages,
        KeyCode::Right | KeyCode::Tab => choice.panel = (choice.panel + 1) % pages,
        // `+` halves the window, down to ten steps; `-` doubles it, up to all steps.
        KeyCode::Char('+') => choice.window = Some((choice.window.unwrap_or(step) / 2).max(10)),
        KeyCode::Char('-') => choice.window = choice.window.map(|steps| 2 * steps).filter(|&steps| steps < step),
        _ => {}
    }
    true
}
