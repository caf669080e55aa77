//! Aligned columns for the terminal.

use std::io::{self, Write};

/// Rows of text under headings, each column as wide as its widest cell.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

/// A heading and the side its cells keep to.
#[derive(Debug, Clone, Copy)]
pub enum Column {
    Left(&'static str),
    /// For numbers.
    Right(&'static str),
}

impl Table {
    pub fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    /// Adds a row with one cell for each column. What is not known is shown as `-`.
    pub fn row(&mut self, cells: Vec<Option<String>>) {
        assert_eq!(cells.len(), self.columns.len(), "one cell for each column");
        self.rows.push(cells.into_iter().map(|cell| cell.unwrap_or_else(|| "-".to_owned())).collect());
    }

    /// Writes the headings and the rows.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let widths: Vec<usize> =
            self.columns.iter().enumerate().map(|(index, column)| self.width(index, column)).collect();
        let headings = self.columns.iter().map(|column| column.heading());
        self.line(out, headings, &widths)?;
        for row in &self.rows {
            self.line(out, row.iter().map(String::as_str), &widths)?;
        }
        Ok(())
    }

    fn width(&self, index: usize, column: &Column) -> usize {
        let cells = self.rows.iter().map(|row| row[index].chars().count());
        cells.chain([column.heading().len()]).max().unwrap_or_default()
    }

    fn line<'a>(&self, out: &mut dyn Write, cells: impl Iterator<Item = &'a str>, widths: &[usize]) -> io::Result<()> {
        let mut line = String::new();
        for ((cell, column), width) in cells.zip(&self.columns).zip(widths) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            line.push_str(&match column {
                Column::Left(_) => format!("{cell:<width$}"),
                Column::Right(_) => format!("{cell:>width$}"),
            });
        }
        writeln!(out, "{}", line.trim_end())
    }
}

impl Column {
    fn heading(&self) -> &'static str {
        match self {
            Self::Left(heading) | Self::Right(heading) => heading,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Column::{Left, Right};
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_without_spaces() {
        let mut table = Table::new([Left("peer"), Right("in"), Left("path")]);
        table.row(vec![Some("größe".into()), Some("1.2 kB".into()), None]);
        table.row(vec![Some("b".into()), Some("5 B".into()), Some("10.0.0.1:5".into())]);
        let mut out = Vec::new();
        table.write(&mut out).expect("written");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "peer       in  path\n\
             größe  1.2 kB  -\n\
             b         5 B  10.0.0.1:5\n"
        );
    }
}
