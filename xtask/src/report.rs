//! What a command found.

/// Faults and notes of one command, and how many things it looked at.
#[derive(Debug, Default)]
pub(crate) struct Report {
    name: &'static str,
    what: &'static str,
    checked: usize,
    notes: Vec<String>,
    faults: Vec<String>,
}

impl Report {
    /// A report of `name` that counts `what` (plural).
    pub(crate) fn new(name: &'static str, what: &'static str) -> Self {
        Report { name, what, ..Report::default() }
    }

    pub(crate) fn checked(&mut self, count: usize) {
        self.checked += count;
    }

    /// Something to know that is no fault.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    pub(crate) fn fault(&mut self, fault: impl Into<String>) {
        self.faults.push(fault.into());
    }

    #[cfg(test)]
    pub(crate) fn faults(&self) -> &[String] {
        &self.faults
    }

    /// Prints everything; whether there was no fault.
    pub(crate) fn finish(self) -> bool {
        for note in &self.notes {
            println!("note: {note}");
        }
        for fault in &self.faults {
            println!("fault: {fault}");
        }
        let Report { name, what, checked, .. } = self;
        println!("{name}: {checked} {what} checked, {} faults", self.faults.len());
        self.faults.is_empty()
    }
}
