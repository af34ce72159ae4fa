@echo off
rem Installs edgemed from this stick, with no network and no administrator.
rem Uses the Python of the folder "python", or one of this computer that is new enough.
setlocal
set "kit=%~dp0"
if not exist "%kit%install\install.py" (
    echo error: install\install.py is missing beside install.cmd. 1>&2
    echo hint: Copy the whole folder of the kit, not this file alone. 1>&2
    set code=1
    goto end
)
if exist "%kit%python\python.exe" (
    "%kit%python\python.exe" -B "%kit%install\install.py" %*
    goto done
)
for %%v in (3.14 3.13 3.12 3.11) do (
    py -%%v -c "" >nul 2>&1 && (
        py -%%v -E -s -B "%kit%install\install.py" %*
        goto done
    )
)
python -c "import sys; sys.exit(sys.version_info < (3, 11))" >nul 2>&1 && (
    python -E -s -B "%kit%install\install.py" %*
    goto done
)
echo error: edgemed needs Python 3.11 or newer, and this computer has none. 1>&2
echo hint: The kit for Windows carries it in the folder "%kit%python", which is missing here: copy the kit again. 1>&2
set code=1
goto end
:done
set code=%errorlevel%
:end
rem A window that was opened by a double click would vanish with the message.
if "%~1"=="" pause
exit /b %code%
