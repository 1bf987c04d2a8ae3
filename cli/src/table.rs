//! Compact tables: a header in capitals, two spaces between columns, no borders, no colours, so that people can read them
//! and `awk` can cut them. Must never wrap or cut a cell.

use comfy_table::{CellAlignment, Table as Grid, presets};

/// Rows under a header.
pub(crate) struct Table {
    grid: Grid,
}

impl Table {
    /// With these columns. Those whose name begins with `>` are aligned to the right.
    pub(crate) fn new(columns: &[&str]) -> Self {
        let mut grid = Grid::new();
        grid.load_style(presets::NOTHING);
        grid.set_header(columns.iter().map(|column| column.trim_start_matches('>')));
        for (index, name) in columns.iter().enumerate() {
            if let Some(column) = grid.column_mut(index) {
                column.set_padding((0, 2));
                if name.starts_with('>') {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        Self { grid }
    }

    /// Adds a row. An empty cell is shown as `-`, so that columns can be counted.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.grid.add_row(cells.map(|cell| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                one_line(&cell)
            }
        }));
    }

    /// The table with a line feed at its end.
    pub(crate) fn render(&self) -> String {
        let mut text = self.grid.trim_fmt();
        text.push('\n');
        text
    }
}

/// A cell stays on its line and carries no control characters (a name or a message must not drive the terminal).
pub(crate) fn one_line(cell: &str) -> String {
    cell.chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect()
}

/// Lines of `Label:  value` with the values in one column; for one resource. Entries without value are left out.
#[derive(Default)]
pub(crate) struct Details {
    lines: Vec<(String, String)>,
}

impl Details {
    /// Adds a line.
    pub(crate) fn add(&mut self, label: &str, value: impl Into<String>) -> &mut Self {
        let value = value.into();
        if !value.is_empty() {
            self.lines.push((format!("{label}:"), value));
        }
        self
    }

    /// Adds one line per value, the label before the first only.
    pub(crate) fn add_all(
        &mut self,
        label: &str,
        values: impl IntoIterator<Item = String>,
    ) -> &mut Self {
        for (index, value) in values.into_iter().enumerate() {
            let label = if index == 0 {
                format!("{label}:")
            } else {
                String::new()
            };
            self.lines.push((label, value));
        }
        self
    }

    /// The lines, each with its line feed.
    pub(crate) fn render(&self) -> String {
        let width = self
            .lines
            .iter()
            .map(|(label, _)| label.chars().count())
            .max()
            .unwrap_or(0);
        let mut text = String::new();
        for (label, value) in &self.lines {
            text.push_str(format!("{label:width$}  {}", one_line(value)).trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_without_borders() {
        let mut table = Table::new(&["NAME", ">NODES", "STATE"]);
        table.row(["long-name".into(), "12".into(), "running".into()]);
        table.row(["b".into(), "1".into(), String::new()]);
        assert_eq!(
            table.render(),
            "NAME       NODES  STATE\nlong-name     12  running\nb              1  -\n"
        );
    }

    #[test]
    fn an_empty_table_is_its_header() {
        assert_eq!(Table::new(&["NAME", "AGE"]).render(), "NAME  AGE\n");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let mut table = Table::new(&["NAME"]);
        table.row(["a\u{1b}[31m\nb".into()]);
        assert_eq!(table.render(), "NAME\na [31m b\n");
    }

    #[test]
    fn details_leave_out_what_is_not_there() {
        let mut details = Details::default();
        details
            .add("Name", "x")
            .add("Exit code", "")
            .add_all("Error", ["one".into(), "two".into()]);
        assert_eq!(details.render(), "Name:   x\nError:  one\n        two\n");
    }
}
