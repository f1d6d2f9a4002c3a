//! What passes say of what they took and left.

use std::cell::RefCell;

/// One pass's word on one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    pub pass: &'static str,
    /// `instruction 3, while, body`; empty at the top.
    pub place: String,
    pub is_taken: bool,
    pub text: String,
}

/// Notes while a plan is made; nothing is written where nobody asks.
pub struct Notes(Option<RefCell<Vec<Note>>>);

impl Notes {
    pub fn on() -> Notes {
        Notes(Some(RefCell::default()))
    }

    pub fn off() -> Notes {
        Notes(None)
    }

    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    pub fn add(
        &self,
        pass: &'static str,
        place: &str,
        is_taken: bool,
        text: impl FnOnce() -> String,
    ) {
        if let Some(notes) = &self.0 {
            notes.borrow_mut().push(Note {
                pass,
                place: place.into(),
                is_taken,
                text: text(),
            });
        }
    }

    pub fn into_vec(self) -> Vec<Note> {
        self.0.map(RefCell::into_inner).unwrap_or_default()
    }
}
