//! Text -> checked [`Config`](super::Config), with spans: an error shows the line, what was found and what is expected.

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error("{message}")]
pub struct ConfigError {
    pub message: String,
    #[help]
    pub help: Option<String>,
    #[source_code]
    pub source_code: Option<miette::NamedSource<String>>,
    #[label("{label_text}")]
    pub label: Option<miette::SourceSpan>,
    pub label_text: String,
}

/// Something to mend that stops nobody.
pub type Warning = String;
