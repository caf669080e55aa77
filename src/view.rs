//! Published read-only views.
