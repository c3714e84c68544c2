"""What we show: run directories -> frames -> figures. One script a figure; its name is the figure's. No torch in here.

The scripts are run as files (`python analysis/gradient_flow.py RUNS...`) and so find each other as `import style`;
the line below makes the same import work for `from analysis import gradient_flow`.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
